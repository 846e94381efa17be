"""Pictures of one's own: any size, mode and orientation, framed as FER2013 frames faces."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from data.faces import list_folder, one_line, read_image
from data.images import open_image
from data.jaffe import Box, frame
from utils import UserError

MAX_PICTURE_BYTES = 1 << 28
MAX_PIXELS = 1 << 27  # beyond the largest of telephones, within a gigabyte when decoded

# EPS is no picture but a program, which pillow would have another program run.
REFUSED = {"EPS"}
TRANSPARENT = ("LA", "PA", "RGBA")


def find_pictures(name: str) -> list[Path]:
    """The picture that `name` is, or those in the folder that it is, by name.

    Raises UserError when there is no such thing, or no picture in the folder.
    """
    path = Path(name)
    if not path.is_dir():
        return [path]
    Image.init()
    suffixes = tuple(end for end, kind in Image.EXTENSION.items() if kind not in REFUSED)
    found, _ = list_folder(path, suffixes)
    if not found:
        raise UserError(f"{one_line(path)}: no pictures in this folder, expected some")
    return found


def load_picture(path: Path, crop: Box | None = None) -> np.ndarray:
    """The largest centred square of a picture, or `crop` of it, as gray uint8 (48, 48).

    The picture is turned upright as its EXIF data say. `crop` is a box in 256ths of the square, so
    that of a square picture it is what test_JAFFE.py takes. Raises UserError for what is no
    picture, or has more than MAX_PIXELS, before it is decoded.
    """
    return read_image(path, partial(_decode, crop=crop))


def _decode(stream: BinaryIO, size: int, where: str, crop: Box | None) -> np.ndarray:
    Image.init()
    return open_image(
        stream,
        size,
        where,
        max_bytes=MAX_PICTURE_BYTES,
        formats=sorted(Image.OPEN.keys() - REFUSED),
        expected="a picture",
        fits=lambda width, height: 0 < width * height <= MAX_PIXELS,
        expected_size=f"at most {MAX_PIXELS} pixels",
        convert=lambda image: frame(_centred_square(gray(ImageOps.exif_transpose(image))), crop),
    )


def gray(image: Image.Image) -> Image.Image:
    """A picture of any mode in gray, mode L: on white where it is transparent.

    Deeper grays were brought to 8 bits when the file was opened.
    """
    if image.mode in TRANSPARENT or "transparency" in image.info:
        drawn = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("L")
    if image.mode == "LAB":
        return image.getchannel("L")
    # Some modes (HSV) have no way to gray but by RGB.
    return (image if image.mode == "L" else image.convert("RGB")).convert("L")


def _centred_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
