"""`Predictor`: an exported network, run by onnxruntime, and the faces of a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from auto_fernet.detection import FaceDetector
from auto_fernet.pictures import SIDE, PictureError, Rect, Source, cut_face, explained, open_picture

NETWORKS = Path(__file__).parent / "networks"
DEFAULT = "auto_fernet_s"
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # of onnxruntime, where available
CHUNK = 16  # faces that the network sees at once


class Predictor:
    """Recognises the expressions of the faces in pictures.

    `network`: the name of a network of this package, or an ONNX file that tools.export wrote.
    `detector`, `smallest`: as for FaceDetector. `threads`: of onnxruntime, None for its own choice.
    `providers`: of onnxruntime, in order of preference, None for those of PROVIDERS that there are.
    `classes` are the names of the expressions. Raises PictureError for a network or file that does
    not exist or is no such network.
    """

    def __init__(
        self,
        network: str | Path = DEFAULT,
        detector: str | Path | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        smallest: int | None = None,
    ) -> None:
        # Imported here: pictures and faces can be used without a network.
        import onnxruntime

        path = find_network(network)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        onnxruntime.disable_telemetry_events()
        if threads is not None:
            options.intra_op_num_threads = threads
        with explained(path, "a network that tools.export wrote"):
            if providers is None:
                available = onnxruntime.get_available_providers()
                providers = [name for name in PROVIDERS if name in available]
            self._session = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=list(providers)
            )
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.classes: tuple[str, ...] = tuple(json.loads(metadata["classes"]))
            self._check()
        self._arguments = path.absolute(), detector, threads, providers, smallest
        self._new_detector = partial(FaceDetector, detector, smallest)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def _check(self) -> None:
        """Raise an exception unless the network has our input, output and classes, and runs."""
        names = set(self.classes)
        if len(names) < len(self.classes) or not all(isinstance(n, str) and n for n in names):
            raise ValueError("its classes are no names that differ")
        answers = self.probabilities(np.zeros((2, SIDE, SIDE), np.uint8))
        if answers.shape != (2, len(names)) or not np.isfinite(answers).all():
            raise ValueError(f"answers of shape {answers.shape} for {len(names)} classes, or NaN")

    @cached_property
    def detector(self) -> FaceDetector:
        """The detector, which needs OpenCV, made when it is first used."""
        return self._new_detector()

    def probabilities(self, faces: np.ndarray) -> np.ndarray:
        """The probability of each class: uint8 (N, 48, 48), each filled by a face, to (N, K)."""
        if faces.dtype != np.uint8 or faces.shape[1:] != (SIDE, SIDE):
            raise PictureError(
                f"faces: {faces.dtype} {faces.shape}; expected uint8 (N, {SIDE}, {SIDE})"
            )
        logits = []
        for start in range(0, max(len(faces), 1), CHUNK):
            images = faces[start : start + CHUNK, None].astype(np.float32) / 255
            logits += self._session.run(["logits"], {"faces": images})
        exact = np.concatenate(logits).astype(np.float64)
        powers = np.exp(exact - exact.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def detect_emotions(
        self, picture: Source, face_rectangles: Sequence[Rect] | None = None
    ) -> list[dict[str, Any]]:
        """The faces of a picture: `box` [x, y, width, height] and `emotions`, name to probability.

        `picture`: a path, an image of pillow, or an array uint8 (H, W) or (H, W, 3), red first.
        The largest face comes first. `face_rectangles`: rectangles to use, as they are, instead of
        OpenCV's, each framed as in FER2013; of a detector's `box` the network sees another square.
        """
        opened = open_picture(picture)
        if face_rectangles is None:
            rects = self.detector(opened)
            squares = [self.detector.square(rect) for rect in rects]
        else:
            with explained("face_rectangles", "[(x, y, width, height), ...]"):
                rects = squares = [
                    (int(x), int(y), int(w), int(h)) for x, y, w, h in face_rectangles
                ]
        if not rects:
            return []
        found = self.probabilities(np.stack([cut_face(opened, square) for square in squares]))
        return [
            {"box": list(rect), "emotions": dict(zip(self.classes, p.tolist(), strict=True))}
            for rect, p in zip(rects, found, strict=True)
        ]

    def top_emotion(self, picture: Source) -> tuple[str, float] | tuple[None, None]:
        """The most probable expression of the largest face, and its probability; or None, None."""
        faces = self.detect_emotions(picture)
        if not faces:
            return None, None
        emotions: dict[str, float] = faces[0]["emotions"]
        best = max(emotions, key=emotions.__getitem__)
        return best, emotions[best]


def find_network(name: str | Path) -> Path:
    """The file of a network of this package, or the file `name`. Raises PictureError for none."""
    for path in (Path(name), NETWORKS / f"{name}.onnx"):
        if path.is_file():
            return path
    inside = ", ".join(sorted(path.stem for path in NETWORKS.glob("*.onnx")))
    raise PictureError(f"network {name}: no such file; expected an ONNX file, or one of {inside}")
