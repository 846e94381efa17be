"""FER2013: finding it under `--data`, and its three splits as tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.cache import read_cached
from data.readers import ARCHIVE_SUFFIXES, CLASSES, FOLDERS, SPLITS, TABLE_NAMES, Arrays
from utils import UserError

__all__ = ["CLASSES", "COUNTS", "SPLITS", "Split", "find_fer2013", "load_fer2013"]

# Images per class, in the order of CLASSES.
COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "PublicTest": (467, 56, 496, 895, 653, 415, 607),
    "PrivateTest": (491, 55, 528, 879, 594, 416, 626),
}


@dataclass(frozen=True, eq=False)
class Split:
    """One split: images uint8 (N, 1, 48, 48), labels int64 (N,) in the order of CLASSES.

    `true_labels`, int64 (N,), exists for the synthetic set alone, whose wrong labels are known.
    """

    images: torch.Tensor
    labels: torch.Tensor
    true_labels: torch.Tensor | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Split:
        """The split with `change` applied to every tensor: a move to a device, a choice of rows."""
        true_labels = None if self.true_labels is None else change(self.true_labels)
        return Split(change(self.images), change(self.labels), true_labels)


def load_fer2013(
    path: str | Path, *, report: Callable[[str], None] | None = None
) -> dict[str, Split]:
    """Load the splits Training, PublicTest and PrivateTest from what `--data` names.

    `path` is the set itself in any of its forms, a folder in which to look for it, or
    "synthetic". `report` gets one line for each thing worth knowing: a cache written or not,
    counts that differ from COUNTS. Raises UserError when no set is found or it is malformed.
    """
    if str(path) == "synthetic":
        from data.synthetic import draw_fer2013

        return draw_fer2013()
    report = report or (lambda _: None)
    source = find_fer2013(path)
    splits = _split(read_cached(source, report))
    differences = [
        f"{name} {difference}"
        for name in SPLITS
        for difference in count_differences(splits[name].labels, CLASSES, COUNTS[name])
    ]
    if differences:
        report(f"{source}: counts differ from FER2013's: {', '.join(differences)}")
    return splits


def count_differences(
    labels: torch.Tensor, classes: Sequence[str], expected: Sequence[int]
) -> list[str]:
    """A phrase for each class of which there are not as many labels as `expected`."""
    found = torch.bincount(labels, minlength=len(classes)).tolist()
    return [
        f"{name} {count} instead of {wanted}"
        for name, count, wanted in zip(classes, found, expected, strict=True)
        if count != wanted
    ]


def find_fer2013(path: str | Path) -> Path:
    """Return the table, archive or folder that `path` is or holds; UserError when there is none."""
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
    # Asking glob about a folder that may not be entered is an error.
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
    # Splits that lie one after the other, as they mostly do, are views and cost no copy.
    together = bool((np.diff(arrays.usage.astype(np.int8)) >= 0).all())
    splits = {}
    for index, split in enumerate(SPLITS):
        rows = np.flatnonzero(arrays.usage == index)
        where = slice(rows[0], rows[-1] + 1) if together else torch.from_numpy(rows)
        splits[split] = Split(images[where], labels[where])
    return splits
