"""Decoding one image file: sizes are checked before anything is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

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

    `formats` are those that pillow may open it as. Raises UserError: for more than `max_bytes`,
    what is no image, saying what was `expected`, and a width and height that do not fit.
    """
    if size > max_bytes:
        raise UserError(f"{where}: {size} bytes, expected an image of at most {max_bytes}")
    data = io.BytesIO(stream.read())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(data, formats=formats)
        width, height = image.size
        if fits(width, height):
            return convert(image)
    except Exception as error:  # pillow raises many kinds for broken files
        raise UserError(
            f"{where}: unreadable image ({type(error).__name__}), expected {expected}"
        ) from error
    raise UserError(f"{where}: image of {width}x{height}, expected {expected_size}")
