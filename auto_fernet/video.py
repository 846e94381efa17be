"""Videos and cameras: faces followed from frame to frame, with smoothed probabilities."""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from auto_fernet.console import progress, say
from auto_fernet.detection import FaceDetector, import_opencv, opencv_path
from auto_fernet.drawing import caption, draw_answers
from auto_fernet.pictures import PictureError, Rect, cut_face, explained, unfinished

Recognise = Callable[[np.ndarray], np.ndarray]  # uint8 (N, 48, 48) to probabilities (N, K)

OVERLAP = 0.3  # of the rectangles of one face in two frames: intersection over union, at least
FORGOTTEN = 1.0  # seconds after which a face that was not seen again counts as gone
SMOOTHING = 0.3  # seconds in which the weight of a frame's probabilities falls to 1 / e
FRAME_RATE = 25.0  # of videos without a rate
RATES = 0.1, 1000.0  # the lowest and the highest frame rate to write
READ_AHEAD = 6  # frames whose times give the frame rate
STREAMS = ("http://", "https://", "rtmp://", "rtsp://", "rtsps://", "udp://")
COLUMNS = ("frame", "seconds", "face", "x", "y", "width", "height", "expression")


@dataclass
class Track:
    """One face of a video: its number, last rectangle, and smoothed probabilities (K,)."""

    number: int
    rect: Rect
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seen: float = 0.0  # the time when it was last seen, in seconds
    pause: float = 0.0  # seconds between the last two times

    def add(self, probabilities: np.ndarray, keep: float) -> None:
        """Average: all earlier frames together have the weight `keep`, the new one the rest."""
        before = self.probabilities if len(self.probabilities) else probabilities
        self.probabilities = keep * before + (1 - keep) * probabilities


class Tracker:
    """Follows faces by the overlap of their rectangles.

    A face is forgotten when a frame lacks it more than `patience` seconds after it was last seen.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._tracks: list[Track] = []
        self.count = 0  # faces so far

    def update(self, rects: Sequence[Rect], seconds: float) -> list[Track]:
        """The track of each rectangle of the frame at a time, in their order; new where needed.

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
        self._tracks = [
            t for i, t in enumerate(self._tracks) if i in seen or seconds - t.seen <= self._patience
        ]
        for j, rect in enumerate(rects):
            if j not in found:
                found[j] = Track(self.count, rect, seen=seconds)
                self.count += 1
                self._tracks.append(found[j])
            found[j].pause, found[j].seen = seconds - found[j].seen, seconds
            found[j].rect = rect
        return [found[j] for j in range(len(rects))]


def overlap(a: Rect, b: Rect) -> float:
    """Intersection over union of two rectangles, in [0, 1]."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


class VideoReader:
    """The frames of a video file, a stream or a camera: times in seconds, pictures of mode RGB.

    `source` is a path, an address of STREAMS, or the number of a camera. `rate` is in frames per
    second, as measured, `size` (width, height) in square pixels, `length` the seconds that the file
    states, or None. The time of the first frame is 0; of later ones it is when a camera delivered
    them, or as the file states it, where that is later than that of the frame before. Raises
    PictureError when no frame can be read.
    """

    def __init__(self, source: str) -> None:
        cv2 = import_opencv()
        self.is_camera = source.isdecimal()
        self.is_live = self.is_camera or source.startswith(STREAMS)
        path = urlsplit(source).path if self.is_live else source
        self.name = f"camera-{source}" if self.is_camera else Path(path).stem or "stream"
        self.source = source
        if not self.is_live and not os.path.isfile(source):
            raise PictureError(f"--video {source}: no such file; expected a video or a camera")
        with explained(f"--video {source}", "a video or the number of a camera"):
            name = int(source) if self.is_camera else opencv_path(source)
            self._cv2, self._capture = cv2, cv2.VideoCapture(name)
            stated = self._property("FPS")
            self._frames = self._read(1 / stated if stated > 0 else 1 / FRAME_RATE)
            self._ahead = list(islice(self._frames, READ_AHEAD))
            if not self._ahead:
                raise ValueError("no frame can be read")
        steps = np.diff([seconds for seconds, _ in self._ahead])
        rate = 1 / float(np.median(steps)) if len(steps) else stated or FRAME_RATE
        if abs(stated - rate) < rate / 10:  # the times may be rounded
            rate = stated
        self.rate = min(max(rate, RATES[0]), RATES[1])
        height, width = self._ahead[0][1].shape[:2]
        # Numerator and denominator of a pixel's width by its height, which may be 0.
        aspect = self._property("SAR_NUM") / (self._property("SAR_DEN") or 1) or 1.0
        if self._property("ORIENTATION_META") % 180:  # OpenCV has turned the frame
            aspect = 1 / aspect
        self.size = (round(width * aspect) if 0.1 < aspect < 10 else width, height)
        count = self._property("FRAME_COUNT")
        self.length = count / stated if min(count, stated) > 0 and not self.is_live else None

    def _property(self, name: str) -> float:
        """A property of OpenCV's capture, 0 where it has none."""
        number = float(self._capture.get(getattr(self._cv2, f"CAP_PROP_{name}")))
        return number if math.isfinite(number) else 0.0

    def _read(self, step: float) -> Iterator[tuple[float, np.ndarray]]:
        """Times and arrays of the frames; `step`: seconds to the next where no time is stated."""
        start: float | None = None
        seconds = -step
        while True:
            more, frame = self._capture.read()
            if not more:
                self._capture.release()
                return
            now = time.monotonic() if self.is_camera else self._property("POS_MSEC") / 1000
            start = now if start is None else start
            seconds = now - start if now - start > seconds else seconds + step
            yield seconds, frame

    def __iter__(self) -> Iterator[tuple[float, Image.Image]]:
        for seconds, frame in chain(self._ahead, self._frames):
            picture = Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
            yield seconds, picture if picture.size == self.size else picture.resize(self.size)


class VideoOutput:
    """An mp4 video that is written frame by frame, and a window that shows it, where one can open.

    The video has a constant rate: frames are repeated or left out, so that each is shown at its
    time. It lies beside `path` until `finish`.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int], show: bool) -> None:
        self._cv2 = import_opencv()
        code = self._cv2.VideoWriter_fourcc(*"mp4v")
        self._path, self._part, self._count = path, unfinished(path, path.suffix), 0
        # OpenCV makes a fraction of the rate, whose terms must not exceed 65,535 in mpeg4.
        self._rate = float(f"{rate:.4g}")
        self._writer = self._cv2.VideoWriter(opencv_path(self._part), code, self._rate, size)
        if not self._writer.isOpened():
            say(f"warning: {path}: cannot be written; the table will be", sys.stderr)
        self._last: np.ndarray | None = None
        self._title = path.stem if show and _has_window(self._cv2) else None

    def add(self, picture: Image.Image, seconds: float) -> bool:
        """Write a picture of mode RGB at its time; False after q was pressed in the window."""
        frame = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
        due = round(seconds * self._rate)
        while self._last is not None and self._count < due:
            self._write(self._last)
        if self._count <= due + 1:
            self._write(frame)
        self._last = frame
        if self._title is None:
            return True
        self._cv2.imshow(self._title, frame)
        return self._cv2.waitKey(1) & 0xFF != ord("q")

    def _write(self, frame: np.ndarray) -> None:
        self._writer.write(frame)
        self._count += 1

    def close(self) -> None:
        """Complete the file beside `path`."""
        self._writer.release()

    def finish(self) -> None:
        """Replace `path`; PictureError when frames are missing, of which OpenCV says nothing."""
        copy = self._cv2.VideoCapture(opencv_path(self._part))
        written = copy.get(self._cv2.CAP_PROP_FRAME_COUNT)
        with explained(self._path, "room for a video", "written"):
            if written != self._count:
                self._part.unlink(missing_ok=True)
                raise ValueError("cannot be written (is the disk full?)")
            self._part.replace(self._path)


def annotate_video(
    reader: VideoReader,
    detector: FaceDetector,
    recognise: Recognise,
    classes: Sequence[str],
    out: Path,
) -> None:
    """Write NAME-faces.mp4, a video with its faces marked, and their probabilities, NAME-faces.csv.

    A camera or a stream is read until Ctrl-C, or q in the window of a camera. A row of the table is
    a face in a frame: frame, seconds, face (its number), x, y, width, height, expression, smoothed
    probabilities. Both files have names of their own until they are complete.
    """
    video, table = out / f"{reader.name}-faces.mp4", out / f"{reader.name}-faces.csv"
    if video.exists() and Path(reader.source).exists() and video.samefile(reader.source):
        raise PictureError(f"--out {out}: {video} is the video itself; expected another folder")
    for path in (video, table):
        if path.exists():
            say(f"{path}: of an earlier run, will be replaced", sys.stderr)
    tracker = Tracker(FORGOTTEN)
    output = VideoOutput(video, reader.rate, reader.size, show=reader.is_camera)
    count, seconds, started, part = 0, 0.0, time.monotonic(), unfinished(table)
    with explained(table, "room for a table", "written", OSError):
        with part.open("x", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow([*COLUMNS, *classes])
            try:
                total = round(reader.length * reader.rate) if reader.length else None
                for seconds, picture in progress(reader, total):
                    answers = []
                    for track in follow(picture, seconds, detector, recognise, tracker):
                        p = track.probabilities
                        place = [count, f"{seconds:.3f}", track.number, *track.rect]
                        shares = [f"{share:.6f}" for share in p]
                        rows.writerow([*place, classes[int(p.argmax())], *shares])
                        answers.append((track.rect, caption(track.number, p, classes)))
                    count += 1
                    if not output.add(draw_answers(picture, answers), seconds):
                        break
            except KeyboardInterrupt:
                if not reader.is_live:
                    raise
            finally:
                output.close()
        part.replace(table)
    output.finish()
    end = seconds + 1 / reader.rate
    if reader.length and reader.length - end > max(1.0, reader.length / 20):
        text = f"ended after {end:.1f} of {reader.length:.1f} seconds"
        say(f"warning: {reader.source} {text}", sys.stderr)
    took = time.monotonic() - started
    say(f"{count} frames in {took:.1f} s ({count / took:.1f} frames/s), {tracker.count} faces; "
        f"written: {table} {video}")  # fmt: skip


def follow(
    picture: Image.Image,
    seconds: float,
    detector: FaceDetector,
    recognise: Recognise,
    tracker: Tracker,
) -> list[Track]:
    """The faces of the frame at a time, with smoothed probabilities."""
    rects = detector(picture)
    tracks = tracker.update(rects, seconds)
    if rects:
        faces = np.stack([cut_face(picture, detector.square(rect)) for rect in rects])
        for track, p in zip(tracks, recognise(faces), strict=True):
            track.add(p, keep=math.exp(-track.pause / SMOOTHING))
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
