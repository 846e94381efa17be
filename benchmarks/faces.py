"""Measure how well faces are found and framed, and what it costs in accuracy.

    python -m benchmarks.faces --data data/ --checkpoint auto_fernet_s [--detector yunet.onnx]

On JAFFE: how many faces are found, the square that agrees best with the fixed box of data/jaffe.py,
and accuracy with either, also of the frames in pictures of 1600x1200. On 400 images of a split of
FER2013 (--split): accuracy as they are, and pasted into larger gray pictures, with and without
detection. Many small faces of JAFFE in one picture, and noise: how many faces are found, and how
many rectangles are none. The constants in `auto_fernet/detection.py` were chosen by this, on
PublicTest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from auto_fernet.detection import FaceDetector
from auto_fernet.pictures import FRAME, PictureError, centre_face, cut_face, open_picture
from common import arguments
from common.cli import run_script
from common.report import format_table
from common.weights import load_members, require_classes
from data.augment import to_float
from data.jaffe import BOX, load_jaffe
from data.sets import load_set
from data.types import CLASSES
from engine import Predict
from runtime.errors import UserError

COUNT = 400
GRAY = 128
# Of the pasted faces, by that of the picture: the sides of the canvas and of the face in pixels.
PASTED = {"48 in 68x68": (68, 48), "48 in 104x104": (104, 48), "192 in 800x800": (800, 192)}
PHOTO = (1600, 1200)
# Of pictures with many faces: their size, their columns and rows, and the side of a face's frame.
CROWDS = {
    "49 tiles in 1920x1080": ((1920, 1080), (7, 7), 144),
    "100 tiles in 1920x1080": ((1920, 1080), (10, 10), 100),
    "40 faces in 6000x4000": ((6000, 4000), (8, 5), 256),
}
EMPTY = 60  # pictures without a face


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m benchmarks.faces")
    # fmt: off
    add = parser.add_argument
    add("--checkpoint", type=arguments.names, default=["auto_fernet_s"], metavar="X,Y,...",
        help="trained networks; the logits of several are averaged")
    add("--model_path", default="saved_models", metavar="FOLDER", help="where run folders lie")
    add("--jaffe", default="data", metavar="PATH", help="folder of JAFFE's 213 pictures")
    add("--detector", metavar="FILE", help="a YuNet file (default: OpenCV's cascade)")
    add("--split", choices=("PublicTest", "PrivateTest"), default="PrivateTest",
        help="the split of FER2013")
    # fmt: on
    arguments.add_data_arguments(parser, batch_size=64, seed=0)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print the tables; return the rows of the second."""
    predict, classes = load_members(
        "--checkpoint", args.checkpoint, torch.device("cpu"), model_path=args.model_path
    )
    require_classes("--checkpoint", classes, CLASSES)
    try:
        detector = FaceDetector(args.detector)
    except PictureError as error:
        raise UserError(str(error)) from error
    rng = np.random.default_rng(args.seed)
    jaffe = load_jaffe(args.jaffe, crop=BOX)
    frames = whole_frames(args.jaffe, jaffe.names)
    show_fit(detector, frames)
    boxed = jaffe.images[:, 0].numpy(), jaffe.labels.numpy()
    photos = [paste(frame, PHOTO, int(rng.integers(200, 700)), rng) for frame in frames]
    rows = [
        score("JAFFE", predict, detector, frames, *boxed),
        score("JAFFE in 1600x1200", predict, detector, photos, *boxed),
    ]
    split = load_set(args.data, args.seed).splits[args.split]
    chosen = rng.choice(len(split.images), min(COUNT, len(split.images)), replace=False)
    faces = split.images[chosen, 0].numpy(), split.labels[chosen].numpy()
    for name, (side, face) in PASTED.items():
        pictures = [paste(Image.fromarray(each), (side, side), face, rng) for each in faces[0]]
        rows.append(score(f"{args.split}, {name}", predict, detector, pictures, *faces))
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    print(format_table(["pictures", "n", "faces", "found", "false"], crowds(detector, frames, rng)))
    return {"rows": rows}


def crowds(
    detector: FaceDetector, frames: Sequence[Image.Image], rng: np.random.Generator
) -> list[list[Any]]:
    """Pictures, faces, faces found and rectangles without a face, of CROWDS and of no face."""
    rows: list[list[Any]] = []
    for name, (size, (columns, lines), side) in CROWDS.items():
        count = columns * lines
        pictures, found, false = len(frames) // count, 0, 0
        for start in range(0, pictures * count, count):
            crowd, step = Image.new("L", size, GRAY), (size[0] // columns, size[1] // lines)
            places = [(k % columns * step[0], k // columns * step[1]) for k in range(count)]
            for (left, top), face in zip(places, frames[start:], strict=False):
                crowd.paste(face.convert("L").resize((side, side)), (left, top))
            centres = np.array([(x + w / 2, y + h / 2) for x, y, w, h in detector(crowd)])
            faces = np.array(places) + np.add(BOX[:2], BOX[2:]) / 2 * side / FRAME
            distances = np.abs(centres.reshape(-1, 1, 2) - faces).max(axis=2)
            hits = int((distances < side / 4).any(axis=0).sum())
            found, false = found + hits, false + len(centres) - hits
        rows.append([name, pictures, pictures * count, found, false])
    false = sum(len(detector(noise(rng))) for _ in range(EMPTY))
    return [*rows, [f"noise in {PHOTO[0]}x{PHOTO[1]}", EMPTY, 0, 0, false]]


def noise(rng: np.random.Generator) -> Image.Image:
    """Noise of photographs: the amplitude of a wave is proportional to its length."""
    width, height = PHOTO
    waves = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / np.maximum(waves, 1 / width)
    values = np.fft.irfft2(spectrum, (height, width))
    return Image.fromarray(np.clip(128 + 50 * values / values.std(), 0, 255).astype(np.uint8))


def whole_frames(folder: str, names: Sequence[str]) -> list[Image.Image]:
    """The uncropped JAFFE pictures of the given file names, below a folder."""
    found = {path.name: path for path in Path(folder).rglob("*.tiff")}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"--jaffe {folder}: no {missing[0]}, expected a folder of 213 .tiff files")
    return [open_picture(found[name]) for name in names]


def show_fit(detector: FaceDetector, frames: Sequence[Image.Image]) -> None:
    """Print how many faces are found, and the square that gives the fixed box in the median."""
    left, top, right, bottom = BOX
    fits, counts = [], []
    for frame in frames:
        rects = detector(frame)
        counts.append(len(rects))
        for _, y, width, height in rects[:1]:
            side = max(width, height)
            fits.append(((right - left) / side, ((top + bottom) / 2 - y - height / 2) / side))
    scale, shift = np.median(fits, axis=0)
    print(
        f"JAFFE: a face found in {sum(c > 0 for c in counts)} of {len(frames)} pictures, more than "
        f"one in {sum(c > 1 for c in counts)}; fixed box = {scale:.3f} of the rectangle's side, "
        f"{shift:.3f} below its centre (standard deviations {np.std(fits, axis=0).round(3)})"
    )


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
    predict: Predict,
    detector: FaceDetector,
    pictures: Sequence[Image.Image],
    cropped: np.ndarray,
    labels: np.ndarray,
) -> dict[str, Any]:
    """Accuracy in % on pictures of one face each: cropped by hand, whole, and found.

    `cropped`: the faces as they should be cut, uint8 (N, 48, 48). "cropped, found" is of those
    pictures in which a face was found.
    """
    found = [(k, rects[0]) for k, picture in enumerate(pictures) if (rects := detector(picture))]
    places = [k for k, _ in found]
    cuts = [cut_face(pictures[k], detector.square(rect)) for k, rect in found]
    whole = np.stack([centre_face(picture) for picture in pictures])
    right = recognise(predict, cropped) == labels
    return {
        "pictures": name,
        "n": len(pictures),
        "found %": 100 * len(found) / len(pictures),
        "cropped": 100 * right.mean(),
        "whole": 100 * (recognise(predict, whole) == labels).mean(),
        "cropped, found": 100 * right[places].mean(),
        "detected": 100 * (recognise(predict, np.stack(cuts)) == labels[places]).mean(),
    }


@torch.no_grad()
def recognise(predict: Predict, faces: np.ndarray) -> np.ndarray:
    """The most probable class of uint8 (N, 48, 48)."""
    parts = torch.from_numpy(faces).unsqueeze(1).split(64)
    return torch.cat([predict(to_float(part)).argmax(dim=1) for part in parts]).numpy()


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
