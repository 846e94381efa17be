"""Decoding one image file: its sizes are checked before its pixels are decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.types import SIDE
from utils import reading

Box = tuple[int, int, int, int]

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
MAX_IMAGE_BYTES = 1 << 24
MAX_SIDE = 4096
# Side of the frames in which boxes are given: those of JAFFE.
FRAME = 256


def decode_image(
    source: Path | BinaryIO, where: str, crop: Callable[[Image.Image], Box | None] = lambda _: None
) -> np.ndarray:
    """Decode an image of any size and mode to gray: uint8 (48, 48). UserError names `where`.

    `crop` gives the part of the image to use, None for all of it.
    """
    expected = f"at most {MAX_SIDE} pixels a side, one of {', '.join(FORMATS)}"
    with open_image(source, where, FORMATS, MAX_IMAGE_BYTES, expected) as image:
        check_size(image, max(image.size) <= MAX_SIDE)
        return frame(normalise(image), crop(image))


def frame(image: Image.Image, crop: Box | None) -> np.ndarray:
    """The part `crop` of an image, or all of it, as gray uint8 (48, 48)."""
    # Pillow widens the bilinear kernel when it shrinks, so nothing aliases; the box kernel would
    # average as well, but turns blocky where cropped images are below 48 pixels.
    # Gray first: the numbers of a palette image cannot be averaged.
    gray = image.convert("L")
    if crop is not None:
        # Cut first: resize with a box would mix in pixels from outside it.
        left, top, right, bottom = (round(edge * image.width / FRAME) for edge in crop)
        gray = gray.crop((left, top, right, bottom))
    return np.array(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@contextmanager
def open_image(
    source: Path | BinaryIO, where: str, formats: tuple[str, ...], max_bytes: int, expected: str
) -> Iterator[Image.Image]:
    """Open an image of at most `max_bytes` in one of pillow's `formats`, without decoding it.

    Anything raised in the block becomes a UserError that names `where` and what was `expected`.
    """
    with reading(where, expected), warnings.catch_warnings():
        # Pillow warns of large sizes, which are checked here, and of damage that it can skip.
        warnings.simplefilter("ignore")
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
            content = stream.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ValueError(f"more than {max_bytes} bytes")
        try:
            image = Image.open(io.BytesIO(content), formats=formats)
        except UnidentifiedImageError:  # its text is the address of the stream
            raise ValueError("unreadable image") from None
        yield image


def check_size(image: Image.Image, fits: bool, reason: str = "") -> None:
    """Raise ValueError, naming the size of the image, unless it `fits`."""
    if not fits:
        raise ValueError(f"image of {image.width}x{image.height}{reason}")


def normalise(image: Image.Image) -> Image.Image:
    """The first frame, upright as its EXIF data say, deeper grays scaled to 8 bits.

    Pillow's own conversion would clip 16-bit grays and floats in [0, 1].
    """
    if image.mode.startswith("I") or image.mode == "F":
        highest = 1 if image.mode == "F" else 65535
        pixels = np.asarray(image)
        if not (pixels.min() >= 0 and pixels.max() <= highest):  # also true of NaN
            raise ValueError(f"grays outside 0 to {highest}")
        image = Image.fromarray(np.rint(pixels * (255 / highest)).astype(np.uint8))
    return ImageOps.exif_transpose(image) if image.getexif() else image
