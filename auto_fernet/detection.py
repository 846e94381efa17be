"""Faces in pictures: OpenCV's detectors, and the square around a face that the networks see."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from auto_fernet.pictures import PictureError, Rect, explained, require_regular

# The square that FER2013 shows of a face, from the detector's rectangle: its side by that of the
# rectangle, and the shift of its centre down by that side. Chosen by benchmarks/faces.py.
HAAR_CROP = (1.0, 0.02)
YUNET_CROP = (1.0, 0.0)
LONGEST = 2048  # pixels of the longer side in which faces are sought
LONGEST_OF_VIDEO = 1024
SHORTEST = 256  # pixels to which the shorter side of a small picture is enlarged
SMALLEST = 24  # pixels of the smallest face there: the cascade's window


class FaceDetector:
    """Finds faces by OpenCV: the frontal-face cascade, or a YuNet network in an ONNX file.

    `model`: the YuNet file (Wu et al., 2023), None for the cascade (Viola and Jones, 2001), which
    comes with OpenCV. Pictures are shrunk to `longest` pixels of their longer side. `smallest`:
    side in pixels of the picture of the smallest face to seek, for which it is shrunk less; None
    for SMALLEST of the shrunk picture. Raises PictureError where OpenCV or the file is missing.
    """

    def __init__(
        self, model: str | Path | None = None, smallest: int | None = None, longest: int = LONGEST
    ) -> None:
        self._smallest, self._longest = smallest, longest
        cv2 = import_opencv()
        self._lock = Lock()  # OpenCV's detectors are not for several threads
        self._yunet: Any = None
        if model is None:
            cascade = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
            self._cascade = cv2.CascadeClassifier(str(cascade))
            self._crop = HAAR_CROP
            return
        with explained(model, "a YuNet network in ONNX format, for cv2.FaceDetectorYN"):
            require_regular(Path(model))
            self._yunet = cv2.FaceDetectorYN.create(opencv_path(model), "", (320, 320), 0.7)
            self._yunet.detect(np.zeros((320, 320, 3), np.uint8))
            self._crop = YUNET_CROP

    def __call__(self, picture: Image.Image) -> list[Rect]:
        """The rectangles of the faces in a picture of mode L or RGB, the largest first."""
        scale = min(self._longest / max(picture.size), max(1.0, SHORTEST / min(picture.size)))
        if self._smallest is not None:
            scale = max(scale, min(1.0, SMALLEST / self._smallest))
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        seen = picture.resize(size, Image.Resampling.BILINEAR)
        with self._lock:
            if self._yunet is None:
                smallest = max(SMALLEST, round((self._smallest or 0) * scale))
                neighbours = 5 if max(size) <= LONGEST_OF_VIDEO else 6  # as more windows are sought
                found = self._cascade.detectMultiScale(
                    np.asarray(seen.convert("L")), 1.1, neighbours, minSize=(smallest, smallest)
                )
            else:
                self._yunet.setInputSize(size)
                found = self._yunet.detect(np.asarray(seen.convert("RGB"))[:, :, ::-1].copy())[1]
                found = () if found is None else found[:, :4]
        corners = np.asarray(found, np.float64).reshape(-1, 4) / scale
        corners[:, 2:] += corners[:, :2]
        inside = corners.round().clip(0, picture.size * 2).astype(int).tolist()
        rects = [(left, top, right - left, bottom - top) for left, top, right, bottom in inside]
        return sorted((r for r in rects if r[2] and r[3]), key=lambda r: -r[2] * r[3])

    def square(self, rect: Rect) -> Rect:
        """The square that a network sees of the face in `rect`; it may leave the picture."""
        left, top, width, height = rect
        longer, (scale, shift) = max(width, height), self._crop
        side = max(1, round(longer * scale))
        centre = top + height / 2 + longer * shift
        return round(left + width / 2 - side / 2), round(centre - side / 2), side, side


def opencv_path(path: str | Path) -> str:
    """A path for OpenCV, which a name that is no text would crash. Raises PictureError for one."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        raise PictureError(f"{path}: OpenCV cannot open this name; expected valid UTF-8") from None


def import_opencv() -> Any:
    """The module cv2. Raises PictureError that says what to install where it is missing."""
    # Its own lines, and FFmpeg's, say no more than our errors.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2

        cv2.CascadeClassifier  # noqa: B018 (which OpenCV 5 lacks)
    except (ImportError, AttributeError) as error:
        raise PictureError(
            f"OpenCV 4 is needed to find faces ({error}): "
            "pip install 'opencv-python-headless>=4.9,<5'"
        ) from error
    return cv2
