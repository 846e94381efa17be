"""Measure how well faces are found and framed, and what it costs in accuracy.

    python -m benchmarks.faces --data data/ --jaffe data/jaffe [--detector yunet.onnx]

On JAFFE: how many faces are found, and accuracy with the fixed box of data/jaffe.py and with the
detector's, also of the frames in pictures of 1600x1200. On 400 images of a split of FER2013
(--split): accuracy as they are, and pasted into larger gray pictures, with and without detection.
The constants in `auto_fernet/detection.py` were chosen by this, on PublicTest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from auto_fernet.pictures import centre_face, cut_face, open_picture
from auto_fernet.predictor import DEFAULT, Predictor
from common import arguments
from common.cli import run_script
from common.report import format_table
from data.jaffe import BOX, load_jaffe
from data.sets import load_set
from runtime.errors import reading

COUNT = 400
GRAY = 128
# Of the pasted faces, by that of the picture: the sides of the canvas and of the face in pixels.
PASTED = {"48 in 68x68": (68, 48), "48 in 104x104": (104, 48), "192 in 800x800": (800, 192)}
PHOTO = (1600, 1200)


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m benchmarks.faces")
    # fmt: off
    add = parser.add_argument
    add("--network", default=DEFAULT, metavar="NAME_OR_FILE", help="as for auto-fernet")
    add("--jaffe", default="data", metavar="PATH", help="folder of JAFFE's 213 pictures")
    add("--detector", metavar="FILE", help="a YuNet file (default: OpenCV's cascade)")
    add("--split", choices=("PublicTest", "PrivateTest"), default="PrivateTest",
        help="the split of FER2013")
    # fmt: on
    arguments.add_data_arguments(parser, batch_size=64, seed=0)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print the table; return its rows."""
    with reading("--network or --detector"):
        predictor = Predictor(args.network, args.detector)
    rng = np.random.default_rng(args.seed)
    jaffe = load_jaffe(args.jaffe, crop=BOX)
    with reading(args.jaffe, "a folder of JAFFE's 213 .tiff files"):
        paths = {path.name: path for path in Path(args.jaffe).rglob("*.tiff")}
        frames = [open_picture(paths[name]) for name in jaffe.names]
    boxed = jaffe.images[:, 0].numpy(), jaffe.labels.numpy()
    photos = [paste(frame, PHOTO, int(rng.integers(200, 700)), rng) for frame in frames]
    rows = [
        score("JAFFE", predictor, frames, *boxed),
        score("JAFFE in 1600x1200", predictor, photos, *boxed),
    ]
    split = load_set(args.data).splits[args.split]
    chosen = rng.choice(len(split.images), min(COUNT, len(split.images)), replace=False)
    faces = split.images[chosen, 0].numpy(), split.labels[chosen].numpy()
    for name, (side, face) in PASTED.items():
        pictures = [paste(Image.fromarray(each), (side, side), face, rng) for each in faces[0]]
        rows.append(score(f"{args.split}, {name}", predictor, pictures, *faces))
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    return {"rows": rows}


def paste(
    face: Image.Image, size: tuple[int, int], side: int, rng: np.random.Generator
) -> Image.Image:
    """A gray picture of `size` with a face of `side` pixels at a random place."""
    canvas = Image.new("L", size, GRAY)
    left, top = (int(rng.integers(0, length - side + 1)) for length in size)
    canvas.paste(face.convert("L").resize((side, side), Image.Resampling.BILINEAR), (left, top))
    return canvas


def score(
    name: str,
    predictor: Predictor,
    pictures: Sequence[Image.Image],
    cropped: np.ndarray,
    labels: np.ndarray,
) -> dict[str, Any]:
    """Accuracy in % on pictures of one face each: cropped by hand, whole, and found.

    `cropped`: the faces as they should be cut, uint8 (N, 48, 48). "cropped, found" is of those
    pictures in which a face was found.
    """
    rects = [predictor.detector(picture) for picture in pictures]
    places = [k for k, each in enumerate(rects) if each]
    cuts = [cut_face(pictures[k], predictor.detector.square(rects[k][0])) for k in places]
    whole = [centre_face(picture) for picture in pictures]
    right, right_whole, right_cuts = (
        predictor.probabilities(np.asarray(faces)).argmax(axis=1) == expected
        for faces, expected in ((cropped, labels), (whole, labels), (cuts, labels[places]))
    )
    return {
        "pictures": name,
        "n": len(pictures),
        "found %": 100 * len(places) / len(pictures),
        "cropped": 100 * right.mean(),
        "whole": 100 * right_whole.mean(),
        "cropped, found": 100 * right[places].mean(),
        "detected": 100 * right_cuts.mean(),
    }


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
