"""Decoding one image file: sizes are checked before anything is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from utils import UserError

SIDE = 48
MAX_IMAGE_BYTES = 1 << 20


def decode_image(stream: BinaryIO, size: int, where: str) -> np.ndarray:
    """Decode a 48x48 JPEG or PNG of `size` bytes to gray: uint8 (48, 48).

    The sizes of file and image are checked before anything is decoded. Raises UserError.
    """
    return open_image(
        stream,
        size,
        where,
        max_bytes=MAX_IMAGE_BYTES,
        formats=("JPEG", "PNG"),
        expected=f"a {SIDE}x{SIDE} JPEG or PNG",
        fits=lambda width, height: width == height == SIDE,
        expected_size=f"{SIDE}x{SIDE}",
        convert=lambda image: np.asarray(image.convert("L")),
    )


def open_image(
    stream: BinaryIO,
    size: int,
    where: str,
    *,
    max_bytes: int,
    formats: Sequence[str],
    expected: str,
    fits: Callable[[int, int], bool],
    expected_size: str,
    convert: Callable[[Image.Image], np.ndarray],
) -> np.ndarray:
    """What `convert` makes of an image of `size` bytes, none of which is decoded before it `fits`.

    `formats` are those that pillow may open it as. `convert` gets the first picture of the file,
    upright where its EXIF data say how it was held, 16-bit grays as the nearest of 8 bits. Raises
    UserError: for more than `max_bytes`, what is no image, saying what was `expected`, and a width
    and height that do not fit.
    """
    if size > max_bytes:
        raise UserError(f"{where}: {size} bytes, expected an image of at most {max_bytes}")
    data = io.BytesIO(stream.read(max_bytes))
    try:
        with warnings.catch_warnings():
            # Of sizes, which are checked here, and of damage that leaves an image to read.
            warnings.simplefilter("ignore")
            image = Image.open(data, formats=formats)
            width, height = image.size
            if fits(width, height):
                return convert(_upright(_eight_bits(image)))
    except MemoryError:
        raise
    except Exception as error:  # pillow raises many kinds for broken files
        raise UserError(
            f"{where}: unreadable image ({type(error).__name__}), expected {expected}"
        ) from error
    raise UserError(f"{where}: image of {width}x{height}, expected {expected_size}")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grays of 16 bits or of numbers in [0, 1] scaled to 8 bits; pillow would only clip them."""
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image), 65535))
    if image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image), 1))
    return image


def _scaled(pixels: np.ndarray, highest: int) -> np.ndarray:
    if not (pixels.min() >= 0 and pixels.max() <= highest):  # which no NaN passes either
        raise ValueError(f"grays outside 0 to {highest}")
    return np.rint(pixels * (255 / highest)).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if image.getexif() else image
