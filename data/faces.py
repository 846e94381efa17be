"""Faces of the cross-dataset tests, CK+48 and JAFFE: what both readers share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from data.fer2013 import Split, count_differences
from utils import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")


@dataclass(frozen=True, eq=False)
class Faces:
    """A whole set: images uint8 (N, 1, 48, 48), labels int64 (N,), and where each comes from.

    `names` are file names, `subjects` who is on the image ("" where not known), `sequences` which
    images show one person making one expression; N of each, sorted by label, then by name.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    subjects: list[str]
    sequences: list[str]

    def split(self, index: torch.Tensor) -> Split:
        """The images and labels of the rows that `index`, int64 (M,), names, in its order."""
        return Split(self.images[index], self.labels[index])

    def digest(self) -> str:
        """A text that differs for sets that differ in an image, a label or a name."""
        found = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        found.update(self.images.numpy().tobytes() + self.labels.numpy().tobytes())
        return found.hexdigest()


class Row(NamedTuple):
    """One image of a set on its way into Faces; `image` is uint8 (48, 48)."""

    label: int
    name: str
    subject: str
    sequence: str
    image: np.ndarray


def gather(rows: Sequence[Row]) -> Faces:
    """The rows, of which there must be some, sorted by label and name."""
    ordered = sorted(rows, key=lambda row: (row.label, row.name))
    return Faces(
        images=torch.from_numpy(np.stack([row.image for row in ordered])).unsqueeze(1),
        labels=torch.tensor([row.label for row in ordered], dtype=torch.int64),
        names=[row.name for row in ordered],
        subjects=[row.subject for row in ordered],
        sequences=[row.sequence for row in ordered],
    )


def list_folder(
    folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> tuple[list[Path], list[Path]]:
    """The images and the folders in `folder`, by name; hidden and other files are passed over.

    Raises UserError when the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if entry.name[0] != "." and entry.name != "__MACOSX"]
            folders = [folder / entry.name for entry in seen if entry.is_dir()]
            images = [
                folder / entry.name
                for entry in seen
                if entry.name.lower().endswith(suffixes) and entry.is_file()
            ]
    except OSError as error:
        raise UserError(f"{one_line(folder)}: cannot be read ({error.strerror})") from error
    return sorted(images), sorted(folders)


def read_image(path: Path, decode: Callable[[BinaryIO, int, str], np.ndarray]) -> np.ndarray:
    """What `decode(stream, bytes, name for errors)` makes of a file; UserError if it won't open."""
    where = one_line(path)
    try:
        with path.open("rb") as stream:
            return decode(stream, os.fstat(stream.fileno()).st_size, where)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from error


def report_counts(
    labels: torch.Tensor,
    *,
    classes: Sequence[str],
    expected: Sequence[int],
    what: str,
    report: Callable[[str], None],
) -> None:
    """Report, in one line that begins with `what`, which classes have other counts."""
    if differences := count_differences(labels, classes, expected):
        report(f"{what}: {', '.join(differences)}")


def one_line(path: Path) -> str:
    """The path as it is, or quoted when it holds what does not print on one line."""
    return str(path) if str(path).isprintable() else repr(str(path))
