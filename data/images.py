"""Decoding one image file: its sizes are checked before its pixels are decoded."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.types import SIDE
from utils import reading

MAX_IMAGE_BYTES = 1 << 20
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")


def decode_image(source: Path | BinaryIO, where: str) -> np.ndarray:
    """Decode a 48x48 JPEG or PNG to gray: uint8 (48, 48). Raises UserError, naming `where`."""
    expected = f"a {SIDE}x{SIDE} JPEG or PNG"
    with open_image(source, where, ("JPEG", "PNG"), MAX_IMAGE_BYTES, expected) as image:
        check_size(image, image.size == (SIDE, SIDE))
        return np.asarray(normalise(image).convert("L"))


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


def check_size(image: Image.Image, fits: bool) -> None:
    """Raise ValueError, naming the size of the image, unless it `fits`."""
    if not fits:
        raise ValueError(f"image of {image.width}x{image.height}")


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


def list_folder(
    folder: Path, suffixes: tuple[str, ...] = SUFFIXES
) -> tuple[list[Path], list[Path]]:
    """The images and the folders in `folder`, by name; hidden and other files are skipped."""
    with reading(folder, "a folder"), os.scandir(folder) as entries:
        seen = [entry for entry in entries if entry.name[0] != "." and entry.name != "__MACOSX"]
        folders = sorted(folder / entry.name for entry in seen if entry.is_dir())
        images = sorted(
            folder / entry.name
            for entry in seen
            if entry.name.lower().endswith(suffixes) and entry.is_file()
        )
    return images, folders
