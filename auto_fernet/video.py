"""Videos and cameras: faces followed from frame to frame, with smoothed probabilities."""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from auto_fernet.console import progress, say
from auto_fernet.detection import FaceDetector, import_opencv, opencv_path
from auto_fernet.drawing import caption, draw_answers
from auto_fernet.pictures import PictureError, Rect, cut_face, explained

Recognise = Callable[[np.ndarray], np.ndarray]  # uint8 (N, 48, 48) to probabilities (N, K)

OVERLAP = 0.3  # of the rectangles of one face in two frames: intersection over union, at least
FORGOTTEN = 1.0  # seconds after which a face that was not seen again counts as gone
SMOOTHING = 0.3  # seconds in which the weight of a frame's probabilities falls to 1 / e
FRAME_RATE = 25.0  # of videos that do not say theirs
COLUMNS = ("frame", "seconds", "face", "x", "y", "width", "height", "expression")


@dataclass
class Track:
    """One face of a video: its number, last rectangle, and smoothed probabilities (K,)."""

    number: int
    rect: Rect
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros(0))
    missing: int = 0  # frames since it was last seen

    def add(self, probabilities: np.ndarray, keep: float) -> None:
        """Average: all earlier frames together have the weight `keep`, the new one the rest."""
        before = self.probabilities if len(self.probabilities) else probabilities
        self.probabilities = keep * before + (1 - keep) * probabilities


class Tracker:
    """Follows faces by the overlap of their rectangles.

    A face that is not seen for more than `patience` frames is forgotten.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._tracks: list[Track] = []
        self.count = 0  # faces so far

    def update(self, rects: Sequence[Rect]) -> list[Track]:
        """The track of each rectangle of the next frame, in their order; new ones where needed.

        Pairs are made greedily, the largest overlap first.
        """
        pairs = sorted(
            ((overlap(t.rect, r), i, j) for i, t in enumerate(self._tracks)
             for j, r in enumerate(rects)), reverse=True,
        )  # fmt: skip
        found: dict[int, Track] = {}
        seen: set[int] = set()
        for shared, i, j in pairs:
            if shared >= OVERLAP and i not in seen and j not in found:
                seen.add(i)
                found[j] = self._tracks[i]
        for i, track in enumerate(self._tracks):
            track.missing = 0 if i in seen else track.missing + 1
        self._tracks = [t for t in self._tracks if t.missing <= self._patience]
        for j, rect in enumerate(rects):
            if j not in found:
                found[j] = Track(self.count, rect)
                self.count += 1
                self._tracks.append(found[j])
            found[j].rect = rect
        return [found[j] for j in range(len(rects))]


def overlap(a: Rect, b: Rect) -> float:
    """Intersection over union of two rectangles, in [0, 1]."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


class VideoReader:
    """The frames of a video file or a camera, as pictures of mode RGB.

    `source` is a path, or the number of a camera. `rate` is in frames per second, `size` (width,
    height), `count` the number of frames as the file states it, or None. Raises PictureError when
    no frame can be read.
    """

    def __init__(self, source: str) -> None:
        cv2 = import_opencv()
        self.is_camera = source.isdecimal()
        self.name = f"camera-{source}" if self.is_camera else Path(source).stem
        self.source = source
        if not self.is_camera and not os.path.isfile(source):
            raise PictureError(f"--video {source}: no such file; expected a video or a camera")
        with explained(f"--video {source}", "a video or the number of a camera"):
            name = int(source) if self.is_camera else opencv_path(source)
            self._capture = cv2.VideoCapture(name)
            more, self._first = self._capture.read()
            if not more:
                raise ValueError("no frame can be read")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and 1 <= rate <= 1000 else FRAME_RATE
        self.size = (self._first.shape[1], self._first.shape[0])
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.count = count if count > 0 else None

    def __iter__(self) -> Iterator[Image.Image]:
        more, frame = True, self._first
        while more:
            yield Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
            more, frame = self._capture.read()
        self._capture.release()


class VideoOutput:
    """An mp4 video that is written frame by frame, and a window that shows it, where one can open.

    Raises PictureError when `path` cannot be written.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int], show: bool) -> None:
        self._cv2 = import_opencv()
        code = self._cv2.VideoWriter_fourcc(*"mp4v")
        self._path, self._count = path, 0
        self._writer = self._cv2.VideoWriter(opencv_path(path), code, rate, size)
        if not self._writer.isOpened():
            raise PictureError(f"{path}: cannot be written; expected a folder for a video")
        self._title = path.stem if show and _has_window(self._cv2) else None

    def add(self, picture: Image.Image) -> bool:
        """Write a picture of mode RGB; whether to go on, as q in the window ends the video."""
        frame = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
        self._writer.write(frame)
        self._count += 1
        if self._title is None:
            return True
        self._cv2.imshow(self._title, frame)
        return self._cv2.waitKey(1) & 0xFF != ord("q")

    def close(self) -> None:
        """Finish the file; PictureError when it lacks frames, of which OpenCV says nothing."""
        self._writer.release()
        written = self._cv2.VideoCapture(str(self._path)).get(self._cv2.CAP_PROP_FRAME_COUNT)
        if written != self._count:
            raise PictureError(f"{self._path}: cannot be written; is the disk full?")


def annotate_video(
    reader: VideoReader,
    detector: FaceDetector,
    recognise: Recognise,
    classes: Sequence[str],
    out: Path,
) -> dict[str, Any]:
    """Write NAME-faces.mp4, a video with its faces marked, and their probabilities, NAME-faces.csv.

    A camera is read until Ctrl-C or q in its window. A row of the table is a face in a frame:
    frame, seconds, face (its number), x, y, width, height, expression, smoothed probabilities.
    Returns the number of frames and faces, the seconds it took, and the paths `video` and `table`.
    """
    video, table = out / f"{reader.name}-faces.mp4", out / f"{reader.name}-faces.csv"
    if video.exists() and Path(reader.source).exists() and video.samefile(reader.source):
        raise PictureError(f"--out {out}: {video} is the video itself; expected another folder")
    tracker = Tracker(patience=round(FORGOTTEN * reader.rate))
    keep = math.exp(-1 / (SMOOTHING * reader.rate))
    output = VideoOutput(video, reader.rate, reader.size, show=reader.is_camera)
    count, started = 0, time.monotonic()
    with explained(table, "room for a table", "written"), table.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*COLUMNS, *classes])
        try:
            for picture in progress(reader, reader.count):
                seconds = time.monotonic() - started if reader.is_camera else count / reader.rate
                answers = []
                for track in follow(picture, detector, recognise, tracker, keep):
                    p = track.probabilities
                    place = [count, f"{seconds:.3f}", track.number, *track.rect]
                    shares = [f"{share:.6f}" for share in p]
                    rows.writerow([*place, classes[int(p.argmax())], *shares])
                    answers.append((track.rect, caption(track.number, p, classes)))
                count += 1
                if not output.add(draw_answers(picture, answers)):
                    break
        except KeyboardInterrupt:
            if not reader.is_camera:
                raise
        finally:
            output.close()
    if reader.count and count < reader.count:
        say(f"warning: {reader.source} ended after {count} of {reader.count} frames", sys.stderr)
    return {"frames": count, "faces": tracker.count, "seconds": time.monotonic() - started,
            "video": str(video), "table": str(table)}  # fmt: skip


def follow(
    picture: Image.Image,
    detector: FaceDetector,
    recognise: Recognise,
    tracker: Tracker,
    keep: float,
) -> list[Track]:
    """The faces of the next frame, with smoothed probabilities."""
    rects = detector(picture)
    tracks = tracker.update(rects)
    if rects:
        faces = np.stack([cut_face(picture, detector.square(rect)) for rect in rects])
        for track, p in zip(tracks, recognise(faces), strict=True):
            track.add(p, keep)
    return tracks


def _has_window(cv2: Any) -> bool:
    """Whether OpenCV can open a window: the headless packages cannot, nor without a display."""
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return False
    try:
        cv2.namedWindow("camera")
        cv2.destroyWindow("camera")
    except cv2.error:
        return False
    return True
