"""Loading a set of images with classes: FER2013 or any other, its three splits as tensors."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import torch

from data.cache import read_cached
from data.copies import drop_copies, mark_copies
from data.readers import SOUGHT, Arrays, sets_in
from data.sources import Entry, Sets, find_source
from data.synthetic import draw_fer2013
from data.types import CLASSES, SPLITS, DataSet, Split, count_differences
from runtime.errors import UserError
from runtime.logs import LOGGER_NAME

# FER2013's images per class, in the order of CLASSES.
COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "PublicTest": (467, 56, 496, 895, 653, 415, 607),
    "PrivateTest": (491, 55, 528, 879, 594, 416, 626),
}
# Folders and files of CK+ and JAFFE, which `load_ck48` and `load_jaffe` read.
_OTHER_FOLDERS = r"(.*/)?(ck(\+|plus)?(48)?|jaffe[^/]*)"
_OTHER_FILES = r"S\d{3}_\d{3}_\d{8}\.\w+|[A-Z]{2}[._-](AN|DI|FE|HA|SA|SU|NE)\d[._-]\d+\s*\.\w+"


def load_set(path: str | Path, seed: int = 0, *, without_copies: bool = False) -> DataSet:
    """Load a set with the splits Training, PublicTest and PrivateTest from the value of `--data`.

    `path` is the set itself in any of its forms, a folder that contains it, or "synthetic". A split
    that the set does not have is a tenth of each class of Training, drawn by `seed`. Test images
    that are in Training too are marked; `without_copies` leaves them out of Training. What was
    decided, these copies, and counts other than FER2013's are logged. Raises UserError when no set
    is found or it is malformed.
    """
    if str(path) == "synthetic":
        return DataSet(CLASSES, draw_fer2013())
    log = logging.getLogger(LOGGER_NAME).info
    source = find_source(path, SOUGHT._replace(sets=_sets_without_others))
    arrays = read_cached(source)
    for note in arrays.notes.tolist():
        log(f"{source}: {note}")
    classes = tuple(arrays.classes.tolist())
    missing = [index for index in range(len(SPLITS)) if not (arrays.usage == index).any()]
    if missing:
        names = " and ".join(SPLITS[index] for index in missing)
        arrays = arrays._replace(usage=_draw_splits(arrays, missing, seed))
        log(f"{source}: a tenth of each class of Training, drawn by seed {seed}, becomes {names}")
    splits = _split(arrays)
    for name in SPLITS:
        if not len(splits[name].labels):
            raise UserError(f"{source}: too few images to draw {name} from; expected 10 of a class")
    if classes == CLASSES and not missing:
        differences = [
            f"{name} {difference}"
            for name in SPLITS
            for difference in count_differences(splits[name].labels, CLASSES, COUNTS[name])
        ]
        if differences:
            log(f"{source}: counts differ from FER2013's: {', '.join(differences)}")
    splits = mark_copies(splits)
    counts = {
        name: int(split.copies.sum()) for name, split in splits.items() if split.copies is not None
    }
    if any(counts.values()):
        found = " and ".join(f"{count} of {name}" for name, count in counts.items())
        log(f"{source}: {found} are pixel for pixel in Training too")
        if without_copies:
            before = len(splits["Training"].images)
            splits = drop_copies(splits)
            log(f"Training without them: {len(splits['Training'].images)} of {before} images")
    return DataSet(classes, splits)


def _sets_without_others(entries: list[Entry]) -> Sets:
    """The sets in a folder, without CK+ and JAFFE beside them."""
    return {
        root: items
        for root, items in sets_in(entries).items()
        if not root
        or (
            not re.fullmatch(_OTHER_FOLDERS, root, re.I)
            and not re.fullmatch(_OTHER_FILES, items[0].entry.name, re.I)
        )
    }


def _draw_splits(arrays: Arrays, missing: list[int], seed: int) -> np.ndarray:
    usage, generator = arrays.usage.copy(), np.random.default_rng(seed)
    for label in range(len(arrays.classes)):
        rows = generator.permutation(np.flatnonzero((usage == 0) & (arrays.labels == label)))
        # At least one image where that leaves one for training.
        share = max(len(rows) // 10, int(len(rows) > len(missing)))
        for index in missing:
            usage[rows[:share]], rows = index, rows[share:]
    return usage


def _split(arrays: Arrays) -> dict[str, Split]:
    images = torch.from_numpy(arrays.images).unsqueeze(1)
    labels = torch.from_numpy(arrays.labels).long()
    # Splits that are contiguous, as they mostly are, become views, without a copy.
    contiguous = bool((np.diff(arrays.usage.astype(np.int8)) >= 0).all())
    splits = {}
    for index, split in enumerate(SPLITS):
        rows = np.flatnonzero(arrays.usage == index)
        where = slice(rows[0], rows[-1] + 1) if contiguous and len(rows) else torch.from_numpy(rows)
        splits[split] = Split(images[where], labels[where])
    return splits
