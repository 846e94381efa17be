"""FER2013: finding it under `--data`, and its three splits as tensors."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch

from data.cache import read_cached
from data.readers import ARCHIVE_SUFFIXES, FOLDERS, TABLE_NAMES, Arrays
from data.synthetic import draw_fer2013
from data.types import CLASSES, SPLITS, Split, count_differences
from utils import LOGGER_NAME, UserError

# Images per class, in the order of CLASSES.
COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "PublicTest": (467, 56, 496, 895, 653, 415, 607),
    "PrivateTest": (491, 55, 528, 879, 594, 416, 626),
}


def load_fer2013(path: str | Path) -> dict[str, Split]:
    """Load the splits Training, PublicTest and PrivateTest from the value of `--data`.

    `path` is the set itself in any of its forms, a folder that contains it, or "synthetic". A
    cache that is written, and counts other than COUNTS, are logged. Raises UserError when no set
    is found or it is malformed.
    """
    if str(path) == "synthetic":
        return draw_fer2013()
    source = find_fer2013(path)
    splits = _split(read_cached(source))
    differences = [
        f"{name} {difference}"
        for name in SPLITS
        for difference in count_differences(splits[name].labels, CLASSES, COUNTS[name])
    ]
    if differences:
        logging.getLogger(LOGGER_NAME).info(
            f"{source}: counts differ from FER2013's: {', '.join(differences)}"
        )
    return splits


def find_fer2013(path: str | Path) -> Path:
    """Return the table, archive or folder that `path` is or holds; UserError if there is none."""
    path = Path(path)
    if os.path.isfile(path):
        return path
    found = _look_in(path)
    if found is None:
        raise UserError(
            f"--data {path}: no FER2013 there; expected fer2013.csv, icml_face_data.csv, or an "
            f"archive ({' '.join(ARCHIVE_SUFFIXES)}) or folder named fer2013*: get it from Kaggle "
            '("Challenges in Representation Learning: Facial Expression Recognition") and put it '
            "in data/ or name its path with --data; --data synthetic needs no download"
        )
    return found


def _look_in(folder: Path) -> Path | None:
    if any(os.path.isdir(folder / part) for part in FOLDERS):
        return folder
    for name in TABLE_NAMES:
        if os.path.isfile(folder / name):
            return folder / name
    # glob raises for a folder without permission.
    named = sorted(folder.glob("fer2013*")) if os.path.isdir(folder) else []
    for suffix in ARCHIVE_SUFFIXES:
        for candidate in named:
            if candidate.name.lower().endswith(suffix) and os.path.isfile(candidate):
                return candidate
    inner = (_look_in(candidate) for candidate in named if os.path.isdir(candidate))
    return next((found for found in inner if found), None)


def _split(arrays: Arrays) -> dict[str, Split]:
    images = torch.from_numpy(arrays.images).unsqueeze(1)
    labels = torch.from_numpy(arrays.labels).long()
    # Splits that are contiguous, as they mostly are, become views, without a copy.
    contiguous = bool((np.diff(arrays.usage.astype(np.int8)) >= 0).all())
    splits = {}
    for index, split in enumerate(SPLITS):
        rows = np.flatnonzero(arrays.usage == index)
        where = slice(rows[0], rows[-1] + 1) if contiguous else torch.from_numpy(rows)
        splits[split] = Split(images[where], labels[where])
    return splits
