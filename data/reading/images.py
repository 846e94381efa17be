"""Decoding one image file of a data set: its size is checked before its pixels are decoded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from auto_fernet.pictures import Box, check_size, frame, normalise, open_image, quiet
from runtime.errors import reading

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
MAX_IMAGE_BYTES = 1 << 24
MAX_SIDE = 4096


def decode_image(
    source: Path | BinaryIO, where: str, crop: Callable[[Image.Image], Box | None] = lambda _: None
) -> np.ndarray:
    """Decode an image of any size and mode to gray: uint8 (48, 48). UserError names `where`.

    `crop` gets the gray image and gives the part of it to use, None for all of it; `info[GUESSED]`
    of the image is its bit depth where that was guessed.
    """
    expected = f"at most {MAX_SIDE} pixels a side, one of {', '.join(FORMATS)}"
    with reading(where, expected), quiet():
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
            image = open_image(stream, FORMATS, MAX_IMAGE_BYTES)
        check_size(image, max(image.size) <= MAX_SIDE)
        gray = normalise(image)
        return frame(gray, crop(gray))
