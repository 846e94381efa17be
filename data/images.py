"""Decoding one image file of a data set: its size is checked before its pixels are decoded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from auto_fernet.pictures import GUESSED, Box, check_size, frame, normalise, open_image, quiet
from utils import LOGGER_NAME, reading

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
MAX_IMAGE_BYTES = 1 << 24
MAX_SIDE = 4096


def decode_image(
    source: Path | BinaryIO, where: str, crop: Callable[[Image.Image], Box | None] = lambda _: None
) -> np.ndarray:
    """Decode an image of any size and mode to gray: uint8 (48, 48). UserError names `where`.

    `crop` gives the part of the image to use, None for all of it.
    """
    expected = f"at most {MAX_SIDE} pixels a side, one of {', '.join(FORMATS)}"
    with reading(where, expected), quiet():
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
            image = open_image(stream, FORMATS, MAX_IMAGE_BYTES)
        check_size(image, max(image.size) <= MAX_SIDE)
        gray = normalise(image)
        if GUESSED in gray.info:
            _tell(gray.info[GUESSED])
        return frame(gray, crop(gray))


@cache  # once, not for each image of a set
def _tell(bits: int) -> None:
    logging.getLogger(LOGGER_NAME).warning(
        "images whose gray values do not exceed %d are read as %d bits", 2**bits - 1, bits
    )
