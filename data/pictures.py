"""A user's own pictures: any size, mode and orientation, framed as in FER2013."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data.images import Box, check_size, frame, normalise, open_image
from utils import UserError, reading

MAX_PICTURE_BYTES = 1 << 28
MAX_PIXELS = 1 << 27  # more than the largest of telephones, and less than a gigabyte when decoded

REFUSED = {"EPS"}  # a program, which pillow would have another program run
TRANSPARENT = ("LA", "PA", "RGBA")


def find_pictures(name: str) -> list[Path]:
    """The picture `name`, or those in the folder `name`, sorted; UserError if it has none."""
    path = Path(name)
    if not path.is_dir():
        return [path]
    Image.init()
    suffixes = tuple(end for end, kind in Image.EXTENSION.items() if kind not in REFUSED)
    with reading(path, "a folder"):
        listed = sorted(file for file in path.iterdir() if file.name[0] != ".")
        found = [f for f in listed if f.name.lower().endswith(suffixes) and f.is_file()]
    if not found:
        raise UserError(f"{path}: no pictures in this folder, expected some")
    return found


def load_picture(path: Path, crop: Box | None = None) -> np.ndarray:
    """The largest centred square of a picture, or `crop` of it, as gray uint8 (48, 48).

    EXIF orientation is applied, deeper grays are scaled to 8 bits. `crop` is in 256ths of the
    square, so that a square picture is cropped as by test_JAFFE.py. Raises UserError for a file
    that is no picture, or has more than MAX_PIXELS, before it is decoded.
    """
    Image.init()
    formats = tuple(sorted(Image.OPEN.keys() - REFUSED))
    expected = f"a picture of at most {MAX_PIXELS} pixels"
    with open_image(path, str(path), formats, MAX_PICTURE_BYTES, expected) as image:
        check_size(image, 0 < image.width * image.height <= MAX_PIXELS)
        gray = to_gray(normalise(image))
        side = min(gray.size)
        left, top = (gray.width - side) // 2, (gray.height - side) // 2
        return frame(gray.crop((left, top, left + side, top + side)), crop)


def to_gray(image: Image.Image) -> Image.Image:
    """A picture of any 8-bit mode as mode L, on white where it is transparent."""
    if image.mode in TRANSPARENT or "transparency" in image.info:
        drawn = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("L")
    if image.mode == "LAB":
        return image.getchannel("L")
    # Some modes (HSV) can be converted to gray by way of RGB only.
    return (image if image.mode == "L" else image.convert("RGB")).convert("L")
