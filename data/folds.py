"""The folds of cross-validation of CK+48 and JAFFE: by subject, random, and as published.

A fold is a pair of indices, int64 and ascending: the images to train on and those to test on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.ck48 import COUNTS
from data.jaffe import EXAMPLE
from data.types import CK_CLASSES
from runtime.errors import UserError

Fold = tuple[Tensor, Tensor]

# Images of each class that a published fold tests: whole sequences, near a tenth of the class.
PUBLISHED_RUNS = (12, 18, 9, 21, 9, 24, 6)
PUBLISHED_FOLDS = 10
FRAMES = 3  # a sequence


def subject_folds(subjects: Sequence[str], labels: Tensor, folds: int, seed: int) -> list[Fold]:
    """Folds by subject, in each of which the classes have about equal shares.

    `labels` int64 (N,). Every image is tested once; no subject is both trained on and tested.
    Subjects with more images come first, those with as many in an order drawn by `seed`; each
    joins the fold where the sum of the squared shares, of each class and of all images, grows
    least. By hash and in integers, so that folds depend on no library, version or machine.
    Raises UserError when `folds` is below 2 or above what subjects and classes have.
    """
    names, person_of = np.unique(subjects, return_inverse=True)
    people = len(names)
    most = min(people, int(torch.bincount(labels).max()))
    if not 2 <= folds <= most:
        raise UserError(
            f"--folds {folds}: expected 2 to {most}, the subjects or the images of a class"
        )
    # Python's integers, which do not overflow. The last column is of all images.
    own = np.zeros((people, int(labels.max()) + 2), dtype=object)
    np.add.at(own, (person_of, labels.numpy()), 1)
    own[:, -1] = own.sum(axis=1)
    totals = np.maximum(own.sum(axis=0), 1) ** 2
    scales = math.lcm(*totals) // totals
    drawn = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names]
    held = np.zeros((folds, own.shape[1]), dtype=object)
    fold_of = np.zeros(people, int)
    for person in sorted(range(people), key=lambda person: (-own[person, -1], drawn[person])):
        growth = (scales * own[person] * (2 * held + own[person])).sum(axis=1)
        chosen = min(zip(growth, held[:, -1], range(folds), strict=True))[-1]
        fold_of[person] = chosen
        held[chosen] += own[person]
    return _by_group(fold_of[person_of].tolist())


def published_ck48_folds(labels: Tensor, folds: int = PUBLISHED_FOLDS) -> list[Fold]:
    """The published folds of CK+48: runs of consecutive images in each class's sorted list.

    `labels` int64 (N,) in the order of CK_CLASSES, images of a class sorted by name. Of each
    class fold f tests images (f - 1) t to f t - 1 and the last fold the last t; the rest is
    trained on. As published, a run that exceeds its class continues into the next one, so that of
    the 981 images 24 are never tested and 33 twice.

    t is PUBLISHED_RUNS for ten folds of the whole set. For other numbers of folds or images,
    which are not published in detail, it is the number of whole sequences nearest to an equal
    share (which would give PUBLISHED_RUNS except for fear: 6 instead of 9), or an equal share of
    single images if that is 0. Raises UserError when a fold has nothing to train on.
    """
    count = len(labels)
    sizes = torch.bincount(labels, minlength=len(CK_CLASSES)).tolist()
    if folds == PUBLISHED_FOLDS and tuple(sizes) == COUNTS:
        runs: tuple[int, ...] = PUBLISHED_RUNS
    else:
        runs = tuple(_run(size, folds) for size in sizes)
    order = np.argsort(labels.numpy(), kind="stable")
    firsts = np.cumsum([0, *sizes[:-1]])
    pairs = []
    for fold in range(folds):
        tested = np.zeros(count, bool)
        for first, size, run in zip(firsts, sizes, runs, strict=True):
            start = first + (size - run if fold == folds - 1 else fold * run)
            # Wraps around in small sets only.
            tested[order[np.arange(start, start + run) % count]] = True
        pairs.append((np.flatnonzero(~tested), np.flatnonzero(tested)))
    return _checked(pairs)


def leave_one_subject_out(subjects: Sequence[str]) -> list[Fold]:
    """A fold for each subject, in sorted order, that tests all images of it.

    Raises UserError when there are fewer than two subjects, or images of an unknown subject ("").
    """
    if unknown := sum(not subject for subject in subjects):
        raise UserError(
            f"--mode finetune: {unknown} of {len(subjects)} file names do not say who is on the "
            f"image, expected names such as {EXAMPLE}; --mode evaluate needs none"
        )
    return _by_group(subjects)


def random_folds(labels: Tensor, folds: int, seed: int) -> list[Fold]:
    """Random folds of images in which the classes have equal shares; a person is in both parts.

    `labels` int64 (N,). Raises UserError when `folds` is below 2 or above the images of a class.
    """
    from sklearn.model_selection import StratifiedKFold  # takes a second

    least = int(labels.unique(return_counts=True)[1].min())
    if not 2 <= folds <= least:
        raise UserError(f"--folds {folds}: expected 2 to {least}, the images of the smallest class")
    drawn = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    return _checked(list(drawn.split(labels.numpy(), labels.numpy())))


def overlap(train_index: Tensor, test_index: Tensor, groups: Sequence[str]) -> int:
    """The number of test images whose group (subject or sequence) is also trained on."""
    trained = {groups[row] for row in train_index.tolist()}
    return sum(groups[row] in trained for row in test_index.tolist())


def _by_group(groups: Sequence[Any]) -> list[Fold]:
    """A fold for each of the groups of the images, in sorted order, that tests its images."""
    tests = [np.array(groups) == group for group in sorted(set(groups))]
    return _checked([(np.flatnonzero(~test), np.flatnonzero(test)) for test in tests])


def _run(size: int, folds: int) -> int:
    return FRAMES * round(size / (FRAMES * folds)) or min(size, max(1, size // folds))


def _checked(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Fold]:
    folds = [
        (torch.from_numpy(train).to(torch.int64), torch.from_numpy(test).to(torch.int64))
        for train, test in pairs
    ]
    for number, fold in enumerate(folds, 1):
        for index, purpose in zip(fold, ("train on", "test on"), strict=True):
            if not len(index):
                raise UserError(
                    f"--folds {len(folds)}: fold {number} has no image to {purpose}, "
                    "expected fewer folds or more images"
                )
    return folds
