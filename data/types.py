"""The names of classes and splits, and the containers of images and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# The order of the labels of FER2013 and JAFFE.
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
# The order of the labels of CK+48.
CK_CLASSES = ("anger", "disgust", "fear", "happy", "sadness", "surprise", "contempt")
# What the file names of JAFFE call each of CLASSES.
JAFFE_CODES = ("AN", "DI", "FE", "HA", "SA", "SU", "NE")
SPLITS = ("Training", "PublicTest", "PrivateTest")
SIDE = 48  # pixels


@dataclass(frozen=True, eq=False)
class Split:
    """One split: images uint8 (N, 1, 48, 48), labels int64 (N,) in the order of the classes.

    `copies`, bool (N,), exists for test splits: which images are in Training too. `groups`, int64
    (N,), exists where a training batch is to hold the images of one group, such as a subject.
    `total`: of a part, the images of the whole split.
    """

    images: Tensor
    labels: Tensor
    copies: Tensor | None = None
    groups: Tensor | None = None
    total: int | None = None

    def take(self, index: Tensor | slice) -> Split:
        """The images at `index`, int64 (M,), in its order."""
        return self._change(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`."""
        return self._change(lambda tensor: tensor.to(device))

    def _change(self, change: Callable[[Tensor], Tensor]) -> Split:
        tensors = (self.images, self.labels, self.copies, self.groups)
        part = Split(*(None if tensor is None else change(tensor) for tensor in tensors))  # type: ignore[arg-type]
        return replace(part, total=self.total)


@dataclass(frozen=True)
class DataSet:
    """A set with its splits, by their names in SPLITS; labels are in the order of `classes`."""

    classes: tuple[str, ...]
    splits: dict[str, Split]

    def to(self, device: torch.device | str) -> DataSet:
        """The same set on `device`."""
        return DataSet(
            self.classes, {name: split.to(device) for name, split in self.splits.items()}
        )

    def digest(self) -> str:
        """A hash of the classes, splits, labels and images."""
        splits = self.splits.items()
        names = [*self.classes, *(f"{name} {len(split.labels)}" for name, split in splits)]
        return _digest(names, [part for _, s in splits for part in (s.images, s.labels)])


@dataclass(frozen=True, eq=False)
class Faces:
    """CK+48 or JAFFE: images uint8 (N, 1, 48, 48), labels int64 (N,), sorted by label, then name.

    `names` are file names, `subjects` the person shown ("" if unknown), and images of one of
    `sequences` show one person making one expression; N of each.
    """

    images: Tensor
    labels: Tensor
    names: list[str]
    subjects: list[str]
    sequences: list[str]

    def split(self, index: Tensor, *, by_subject: bool = False) -> Split:
        """The images and labels of the rows `index`, int64 (M,), in its order.

        With `by_subject` a training batch holds the images of one subject.
        """
        groups = None
        if by_subject:
            groups = torch.from_numpy(np.unique(self.subjects, return_inverse=True)[1])[index]
        return Split(self.images[index], self.labels[index], groups=groups)

    def digest(self) -> str:
        """A hash of the images, labels and names."""
        return _digest(self.names, (self.images, self.labels))


def _digest(names: Sequence[str], tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape"))
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def stack_faces(
    images: Sequence[np.ndarray], labels: list[int], names: list[str], subjects: list[str],
    sequences: list[str],
) -> Faces:  # fmt: skip
    """Faces of N images uint8 (48, 48), at least one, and of their columns in any order."""
    rows = sorted(range(len(names)), key=lambda row: (labels[row], names[row]))
    return Faces(
        torch.from_numpy(np.stack([images[row] for row in rows])).unsqueeze(1),
        torch.tensor([labels[row] for row in rows]),
        *([column[row] for row in rows] for column in (names, subjects, sequences)),
    )


class Arrays(NamedTuple):
    """A set as it is read: images uint8 (N, 48, 48), labels and usage uint8 (N,).

    `labels` are of `classes`, `usage` of SPLITS; splits that the source does not have are empty. A
    table keeps its row order; images are sorted by split and file name, whose numbers are not
    sorted by class. `notes` are lines that say what was decided.
    """

    images: np.ndarray
    labels: np.ndarray
    usage: np.ndarray
    classes: np.ndarray = np.array(CLASSES)
    notes: np.ndarray = np.array([], "U1")


def count_differences(labels: Tensor, classes: Sequence[str], expected: Sequence[int]) -> list[str]:
    """A phrase for each class that has another number of labels than `expected`."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    return [
        f"{name} {count} instead of {wanted}"
        for name, count, wanted in zip(classes, counts, expected, strict=True)
        if count != wanted
    ]
