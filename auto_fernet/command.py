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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from auto_fernet.console import printable, progress, say
from auto_fernet.detection import FaceDetector
from auto_fernet.drawing import MOST_FACES, draw_answers, draw_sheet, save_drawn
from auto_fernet.pictures import (
    FRAME,
    Box,
    PictureError,
    centre_face,
    cut_face,
    explained,
    find_pictures,
    open_picture,
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
    expected = f"LEFT,TOP,RIGHT,BOTTOM in whole numbers from 0 to {FRAME}, or none, expected"
    try:
        left, top, right, bottom = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} found, {expected}") from None
    if not (0 <= left < right <= FRAME and 0 <= top < bottom <= FRAME):
        raise argparse.ArgumentTypeError(
            f"{text} found, {expected}, with left < right and top < bottom"
        )
    return left, top, right, bottom


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
    add("--video", metavar="FILE_OR_CAMERA",
        help="a video, or the number of a camera, such as 0, instead of pictures (needs OpenCV)")
    add("--crop", type=box, metavar="LEFT,TOP,RIGHT,BOTTOM|none",
        help="part of the largest centred square to use, in 256ths of that square's side, whatever "
             "the size of the picture: 64,64,192,192 is its middle half (default: all of it)")
    add("--out", default="predictions", metavar="FOLDER",
        help="folder of the table and the drawn pictures, created if missing")
    # fmt: on


def predict(
    args: argparse.Namespace, recognise: Recognise, classes: Sequence[str]
) -> dict[str, Any]:
    """Do what the flags of `add_picture_arguments` say; return what was found and written.

    Raises PictureError for flags that exclude each other, and where nothing can be read.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names may hold characters that the terminal cannot show.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if (args.video is None) == (not args.pictures):
        raise PictureError("expected either pictures or --video")
    detect = args.detect or args.detector is not None
    if args.crop is not None and (detect or args.video is not None):
        raise PictureError("--crop: not where faces are found, as each face is cropped by its box")
    if args.video is None:
        detector = FaceDetector(args.detector) if detect else None
        return predict_pictures(args, detector, recognise, classes)
    reader = VideoReader(args.video)
    detector = FaceDetector(args.detector)
    found = annotate_video(reader, detector, recognise, classes, make_folder(args.out))
    speed = found["frames"] / found["seconds"]
    print(
        f"{found['frames']} frames in {found['seconds']:.1f} s ({speed:.1f} frames/s), "
        f"{found['faces']} faces; written: {found['table']} {found['video']}"
    )
    return found


def predict_pictures(
    args: argparse.Namespace,
    detector: FaceDetector | None,
    recognise: Recognise,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Predict one picture after the other; without a `detector` each is taken as one face."""
    pictures, left_out = find_pictures(args.pictures)
    for reason in left_out:
        say(f"left out: {printable(reason)}", sys.stderr)
    out = Path(args.out)
    rows: list[dict[str, Any]] = []
    shown: list[tuple[np.ndarray, np.ndarray, str]] = []
    warned = False
    with ExitStack() as stack:
        writer = None
        for short, path in progress(pictures, len(pictures)):
            name = printable(short)
            try:
                picture = open_picture(path)
            except PictureError as error:
                left_out.append(str(error))
                say(f"left out: {printable(str(error))}", sys.stderr)
                continue
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
            answers = []
            for k, p in enumerate(recognise(np.stack(faces))):
                row: dict[str, Any] = {"picture": name}
                if rects:
                    row |= {"face": k, **dict(zip(RECT, rects[k], strict=True))}
                expression = classes[int(p.argmax())]
                row |= {"expression": expression, **dict(zip(classes, p.tolist(), strict=True))}
                label = f"{name} face {k}" if rects else name
                shares = "  ".join(f"{c} {100 * x:.1f}" for c, x in zip(classes, p, strict=True))
                say(f"{label}  {expression}  {shares}")
                if writer is None:
                    file = stack.enter_context(
                        (make_folder(args.out) / TABLE).open("w", newline="", encoding="utf-8")
                    )
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    writer.writeheader()
                writer.writerow(row)
                rows.append(row)
                answers.append(f"{expression} {100 * p.max():.0f} %")
                if len(shown) < MOST_FACES:
                    shown.append((faces[k], p, label))
            if rects:
                drawn = draw_answers(picture, list(zip(rects, answers, strict=True)))
                save_drawn(drawn, out / DRAWN / f"{short}.jpg")
    if not rows:
        if len(pictures) == len(left_out) == 1:
            raise PictureError(left_out[0])
        raise PictureError(
            f"{' '.join(args.pictures)}: no face in {len(pictures)} pictures, of which "
            f"{len(left_out)} were left out; expected pictures of faces"
        )
    sheet = draw_sheet(shown, classes, len(rows))
    save_drawn(sheet, out / SHEET)
    drawings = f" {out / DRAWN}" if detector else ""
    print(f"{len(rows)} faces, probabilities in %; written: {out / TABLE} {out / SHEET}{drawings}")
    return {"rows": rows, "table": str(out / TABLE), "sheet": str(out / SHEET)}


def make_folder(name: str) -> Path:
    """The folder of --out, created where it is missing. Raises PictureError where that fails."""
    folder = Path(name)
    with explained(f"--out {name}", "a folder"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("auto-fernet", description=__doc__.split("\n\n")[0])
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
    try:
        predictor = Predictor(args.network)
        predict(args, predictor.probabilities, predictor.classes)
        sys.stdout.flush()
    except PictureError as error:
        sys.stderr.write(f"{parser.prog}: error: {printable(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted\n")
        return 130
    except BrokenPipeError:  # the reader of our output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
