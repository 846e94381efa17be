"""CK+48: finding it under `--data`, and its 981 images with subject and sequence."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np

from data.images import decode_image, list_folder
from data.synthetic_cross import draw_ck48
from data.types import CK_CLASSES, Faces, Row, count_differences, gather
from utils import LOGGER_NAME, UserError

# Images per class, in the order of CK_CLASSES, which is not that of the folders.
COUNTS = (135, 177, 75, 207, 84, 249, 54)
FOLDER = "CK+48"
FOLDER_NAMES = r"ck(\+|plus)?(48)?"  # in any case
EXAMPLE = "S010_004_00000017.png"


def load_ck48(path: str | Path) -> Faces:
    """Load CK+48 from the value of `--data`: the set itself, a folder with it, or "synthetic".

    Labels in the order of CK_CLASSES; a sequence is `S010_004`, subject and number. Counts other
    than COUNTS are logged. Raises UserError when no set is found, it is malformed, or one file
    name is in two classes.
    """
    if str(path) == "synthetic":
        drawn = draw_ck48()
        parts = zip(drawn.labels.tolist(), drawn.names, drawn.images.numpy(), strict=True)
        return gather([_row(name, label, image[0], name) for label, name, image in parts])
    source = find_ck48(path)
    rows = [
        row for label, name in enumerate(CK_CLASSES) for row in _read_class(source, name, label)
    ]
    known: dict[str, int] = {}
    for row in rows:
        if (other := known.setdefault(row.name, row.label)) != row.label:
            raise UserError(
                f"{source}: {row.name} in the folders {CK_CLASSES[other]} and "
                f"{CK_CLASSES[row.label]}, expected an image in one"
            )
    faces = gather(rows)
    if differences := count_differences(faces.labels, CK_CLASSES, COUNTS):
        logging.getLogger(LOGGER_NAME).info(
            f"{source}: counts differ from CK+48's: {', '.join(differences)}"
        )
    return faces


def find_ck48(path: str | Path) -> Path:
    """Return the folder of class folders that `path` is or holds; UserError if there is none."""
    found = _look_in(Path(path))
    if found is None:
        raise UserError(
            f"--data {path}: no CK+48 there; expected a folder {FOLDER} with a folder of "
            f"images for each of {', '.join(CK_CLASSES)}: get it from Kaggle "
            '("CKPLUS"), unpack it into data/ or name its path with --data; '
            "--data synthetic needs no download"
        )
    return found


def _look_in(folder: Path) -> Path | None:
    if not os.path.isdir(folder):
        return None
    _, folders = list_folder(folder)
    # By name first, so that other folders beside the set do not matter.
    named = (_look_in(inner) for inner in folders if re.fullmatch(FOLDER_NAMES, inner.name, re.I))
    own = folder if any(inner.name in CK_CLASSES for inner in folders) else None
    return next((found for found in named if found), own)


def _read_class(source: Path, name: str, label: int) -> list[Row]:
    folder = source / name
    if not os.path.isdir(folder):
        raise UserError(f"{source}: no class folder {name}; expected {', '.join(CK_CLASSES)}")
    images, _ = list_folder(folder)
    if not images:
        raise UserError(f"{folder}: holds no image; expected some such as {EXAMPLE}")
    # Names first: a folder of something else is refused before anything is decoded.
    for path in images:
        _sequence(path.name, str(path))
    return [_row(path.name, label, decode_image(path, str(path)), str(path)) for path in images]


def _row(name: str, label: int, image: np.ndarray, where: str) -> Row:
    subject, sequence = _sequence(name, where)
    return Row(label, name, subject, sequence, image)


def _sequence(name: str, where: str) -> tuple[str, str]:
    parts = re.fullmatch(r"((S[0-9]{3})_[0-9]{3})_[0-9]{8}\.png", name)
    if parts is None:
        raise UserError(
            f"{where}: file name {name!r}, expected one such as {EXAMPLE} "
            "(subject, sequence, frame)"
        )
    return parts[2], parts[1]
