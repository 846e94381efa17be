"""The command `auto-fernet`: name the expressions of the faces in pictures or in a video.

    auto-fernet PICTURE_OR_FOLDER... [--detect] [--out FOLDER]
    auto-fernet --video FILE_OR_CAMERA [--out FOLDER]

Prints a line per face, the most likely expression and the probabilities of all classes, and writes
`predictions.csv` and `faces.png`, a sheet of the faces, to --out. With --detect every face of a
picture is found by OpenCV, and the pictures are drawn again in `drawn/` with boxes and answers;
without it a picture must be filled by one face, framed about as in FER2013. In a folder and its
sub-folders, files that are no pictures are named and left out. --video writes a copy of a video
with boxes and answers, and a table of times, faces and probabilities.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from auto_fernet.console import printable, progress, say
from auto_fernet.detection import LONGEST, LONGEST_OF_VIDEO, SMALLEST, FaceDetector
from auto_fernet.drawing import MOST_FACES, caption, draw_answers, draw_sheet, save_drawn
from auto_fernet.pictures import (
    FRAME,
    Box,
    PictureError,
    Rect,
    centre_face,
    cut_face,
    explained,
    find_pictures,
    open_picture,
    unfinished,
)
from auto_fernet.predictor import DEFAULT, Predictor
from auto_fernet.video import Recognise, VideoReader, annotate_video

TABLE, SHEET, DRAWN = "predictions.csv", "faces.png", "drawn"  # what is written in --out
RECT = ("x", "y", "width", "height")
LARGE = 96  # pixels of the shorter side, above which a picture is rarely a cropped face


def box(text: str) -> Box | None:
    """argparse type: the edges of a box within FRAME, separated by commas, or none."""
    if text.lower() == "none":
        return None
    try:
        left, top, right, bottom = map(int, text.split(","))
        if not (0 <= left < right <= FRAME and 0 <= top < bottom <= FRAME):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} found, LEFT,TOP,RIGHT,BOTTOM in whole numbers from 0 to {FRAME} expected, "
            "with left < right and top < bottom, or none"
        ) from None
    return left, top, right, bottom


def pixels(text: str) -> int:
    """argparse type: a number of pixels."""
    if not (text.isdecimal() and 1 <= int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text} found, a number of pixels expected")
    return int(text)


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `predict_pictures` and `predict_video`."""
    # fmt: off
    add = parser.add_argument
    add("pictures", nargs="*", metavar="PICTURE_OR_FOLDER",
        help="pictures, and folders of pictures with their sub-folders")
    add("--detect", action="store_true", help="find every face of a picture (needs OpenCV)")
    add("--detector", metavar="FILE",
        help="a YuNet network for OpenCV to find faces with, such as "
             "face_detection_yunet_2023mar.onnx (default: OpenCV's frontal-face cascade)")
    add("--smallest", type=pixels, metavar="PIXELS",
        help="side of the smallest face to seek, in pixels of the picture; for small ones large "
             f"pictures take longer (default: {SMALLEST} in a picture shrunk to {LONGEST}, or a "
             f"video to {LONGEST_OF_VIDEO})")
    add("--video", metavar="FILE_OR_CAMERA",
        help="a video, its RTSP or HTTP address, or the number of a camera, such as 0, instead of "
             "pictures (needs OpenCV)")
    add("--crop", type=box, metavar="LEFT,TOP,RIGHT,BOTTOM|none",
        help="part of the largest centred square to use, in 256ths of that square's side, whatever "
             "the size of the picture: 64,64,192,192 is its middle half (default: all of it)")
    add("--out", default="predictions", metavar="FOLDER",
        help="folder of the table and the drawn pictures, created if missing")
    # fmt: on


def predict(args: argparse.Namespace, recognise: Recognise, classes: Sequence[str]) -> None:
    """Do what the flags of `add_picture_arguments` say.

    Raises PictureError for flags that exclude each other, and where nothing can be read.
    """
    if (args.video is None) == (not args.pictures):
        raise PictureError("expected either pictures or --video")
    detect = args.detect or args.detector is not None
    if args.smallest is not None and not detect and args.video is None:
        raise PictureError("--smallest: only where faces are found; expected --detect or --video")
    if args.crop is not None and (detect or args.video is not None):
        raise PictureError("--crop: not where faces are found, as each face is cropped by its box")
    if args.video is None:
        detector = FaceDetector(args.detector, args.smallest) if detect else None
        predict_pictures(args, detector, recognise, classes)
        return
    reader = VideoReader(args.video)
    detector = FaceDetector(args.detector, args.smallest, LONGEST_OF_VIDEO)
    annotate_video(reader, detector, recognise, classes, make_folder(args.out))


def predict_pictures(
    args: argparse.Namespace,
    detector: FaceDetector | None,
    recognise: Recognise,
    classes: Sequence[str],
) -> None:
    """Predict one picture after the other; without a `detector` each is taken as one face."""
    pictures, left_out = find_pictures(args.pictures)
    for reason in left_out:
        say(f"left out: {printable(reason)}", sys.stderr)
    outputs: Outputs | None = None
    warned = False
    for number, (short, path) in enumerate(progress(pictures, len(pictures))):
        name = printable(short)
        try:
            picture = open_picture(path)
        except PictureError as error:
            left_out.append(str(error))
            if len(pictures) > 1:
                say(f"left out: {printable(str(error))}", sys.stderr)
            continue
        if outputs is None:
            outputs = Outputs(make_folder(args.out), classes, detector is not None)
        outputs.check(path)
        if detector is None:
            rects, faces = [], [centre_face(picture, args.crop)]
            if not warned and args.crop is None and min(picture.size) > LARGE:
                warned = True
                say(f"warning: {name} is larger than {LARGE} pixels; one face must fill a "
                    "picture: give --detect to find faces, or --crop", sys.stderr)  # fmt: skip
        else:
            rects = detector(picture)
            faces = [cut_face(picture, detector.square(rect)) for rect in rects]
        if not faces:
            say(f"{name}  no face found")
            continue
        answers = recognise(np.stack(faces))
        outputs.add(name, faces, rects, answers)
        if outputs.drawn is not None:
            texts = [caption(k, p, classes) for k, p in enumerate(answers)]
            drawn = draw_answers(picture, list(zip(rects, texts, strict=True)))
            save_drawn(drawn, outputs.drawn / f"{number:04d}-{path.stem[:80]}.jpg")
    if outputs is None or outputs.count == 0:
        if len(pictures) == len(left_out) == 1:
            raise PictureError(left_out[0])
        raise PictureError(
            f"{' '.join(args.pictures)}: no face in {len(pictures)} pictures, of which "
            f"{len(left_out)} were left out; expected pictures of faces"
        )
    outputs.finish()


class Outputs:
    """What is written to the folder of --out: the table, the sheet, the drawn pictures.

    The table has a name of its own, which ends in .part, until it is complete: an interrupted run
    leaves the rows that it has, and the table of the run before.
    """

    def __init__(self, folder: Path, classes: Sequence[str], detect: bool) -> None:
        self._folder, self._classes = folder, classes
        self.count = 0  # faces so far
        self._shown: list[tuple[np.ndarray, np.ndarray, str]] = []
        self.drawn = make_folder(folder / DRAWN) if detect else None
        if (folder / TABLE).exists():
            say(f"{folder / TABLE}: of an earlier run, will be replaced", sys.stderr)
        self._part = unfinished(folder / TABLE)
        columns = ["picture", *(("face", *RECT) if detect else ()), "expression", *classes]
        with explained(self._part, "room for a table", "written"):
            self._file = self._part.open("x", newline="", encoding="utf-8", buffering=1)
            self._writer = csv.writer(self._file, lineterminator="\n")
            self._writer.writerow(columns)

    def check(self, path: Path) -> None:
        """Raise PictureError when the picture `path` would be overwritten."""
        sheet = self._folder / SHEET
        if (sheet.exists() and sheet.samefile(path)) or (
            self.drawn is not None and path.resolve().parent.samefile(self.drawn)
        ):
            raise PictureError(f"{path}: would be overwritten; expected another folder as --out")

    def add(
        self, name: str, faces: Sequence[np.ndarray], rects: Sequence[Rect], answers: np.ndarray
    ) -> None:
        """Add the faces of a picture to the table and the sheet, and print a line for each."""
        for k, (face, p) in enumerate(zip(faces, answers, strict=True)):
            expression = self._classes[int(p.argmax())]
            place = (k, *rects[k]) if rects else ()
            with explained(self._part, "room for a table", "written"):
                self._writer.writerow([name, *place, expression, *p.tolist()])
            label = f"{name} face {k}" if rects else name
            if len(self._shown) < MOST_FACES:
                self._shown.append((face, p, label))
            shares = zip(self._classes, p, strict=True)
            percents = "  ".join(f"{c} {100 * share:.1f}" for c, share in shares)
            say(f"{label}  {expression}  {percents}")
        self.count += len(faces)

    def finish(self) -> None:
        """Complete the table, draw the sheet, and say what was written."""
        table, sheet = self._folder / TABLE, self._folder / SHEET
        with explained(table, "room for a table", "written"):
            self._file.close()
            self._part.replace(table)
        save_drawn(draw_sheet(self._shown, self._classes, self.count), sheet)
        written = " ".join(map(str, filter(None, (table, sheet, self.drawn))))
        say(f"{self.count} faces, probabilities in %; written: {written}")


def make_folder(name: str | Path) -> Path:
    """A folder of --out, created where it is missing. Raises PictureError where that fails."""
    folder = Path(name)
    with explained(f"--out {name}", "a folder", "made"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("auto-fernet", description=(__doc__ or "").split("\n\n")[0])
    # fmt: off
    add = parser.add_argument
    add("--network", default=DEFAULT, metavar="NAME_OR_FILE",
        help=f"a network of this package, or an ONNX file of tools.export (default: {DEFAULT})")
    # fmt: on
    add_picture_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: status 0, 2 for an error of the user, 130 when interrupted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names may hold characters that it cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        predictor = Predictor(args.network)
        predict(args, predictor.probabilities, predictor.classes)
        return 0
    except PictureError as error:
        return _end(f"{parser.prog}: error: {printable(str(error))}", 2)
    except KeyboardInterrupt:
        return _end(f"{parser.prog}: interrupted", 130)
    except BrokenPipeError:  # the reader of our output has ended
        _mute()
        return 141
    except OSError as error:  # of stdout, as files raise a PictureError
        _mute()
        return _end(f"{parser.prog}: error: the output cannot be written ({error.strerror})", 2)


def _end(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


def _mute() -> None:
    """Discard what is buffered for stdout, where it is a file."""
    with suppress(AttributeError, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
