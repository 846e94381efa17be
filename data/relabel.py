"""Relabelling: doubtful labels of a batch moved to what the network sees, and a record of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from common import ranks
from data.augment import Augmentation, training_batches
from data.fer2013 import CLASSES, Split


def relabel(
    logits: Tensor, labels: Tensor, *, threshold: float, fes: Tensor | None, fes_threshold: float
) -> Tensor:
    """The labels to train a batch on: int64 (B,), doubtful ones replaced by the likeliest class.

    `logits` float (B, K), `labels` int64 (B,) in 0..K-1, `fes` float (K, K) or None, all on one
    device, which the host never waits for. With p = softmax(logits) and gap = max p - p[label], a
    label becomes argmax p (the first of equals) when 0 < gap < `threshold` and
    fes[label, argmax p] > `fes_threshold`; without `fes`, when gap < `threshold`.
    """
    # Classes first: CPUs take the softmax of so short rows far faster as one of columns.
    p = logits.t().softmax(dim=0)
    highest, likeliest = p.max(dim=0)
    gap = highest - p.gather(0, labels[None]).squeeze(0)
    doubtful = gap < threshold
    if fes is not None:
        doubtful &= (gap > 0) & (fes[labels, likeliest] > fes_threshold)
    return torch.where(doubtful, likeliest, labels)


@dataclass(frozen=True, eq=False)
class Repairs:
    """What happened to the labels of an epoch; all of them count, changed or not.

    `matrix` int64 (7, 7) on the CPU: labels by given (row) and new (column) class, those kept on
    its diagonal. `wrong`: labels given that were not the true ones; `repaired`: those of them
    changed to the true one; both None where the truth is not known.
    """

    matrix: Tensor
    wrong: int | None = None
    repaired: int | None = None

    @property
    def seen(self) -> int:
        """Labels that came by."""
        return int(self.matrix.sum())

    @property
    def changed(self) -> int:
        """Labels that left as another class than they came."""
        return self.seen - int(self.matrix.trace())

    @property
    def precision(self) -> float | None:
        """The part of the changed labels that became true, in [0, 1]; None without any."""
        return self.repaired / self.changed if self.repaired is not None and self.changed else None

    @property
    def recall(self) -> float | None:
        """The part of the wrong labels that became true, in [0, 1]; None without any."""
        return self.repaired / self.wrong if self.repaired is not None and self.wrong else None

    def record(self) -> dict[str, Any]:
        """For the epoch's record: labels, those changed, and precision and recall if known."""
        known = {} if self.wrong is None else {"precision": self.precision, "recall": self.recall}
        return {"labels": self.seen, "changed": self.changed, **known}

    def rows(self, epoch: int) -> list[dict[str, Any]]:
        """A row for each pair of classes: how many labels of the one became the other."""
        return [
            {"epoch": epoch, "given": given, "new": new, "labels": int(self.matrix[i, j])}
            for i, given in enumerate(CLASSES)
            for j, new in enumerate(CLASSES)
        ]

    def describe(self) -> str:
        """For the log: how many labels changed, and a table of which became which."""
        table = pd.DataFrame(self.matrix.numpy(), index=CLASSES, columns=CLASSES)
        known = (
            ""
            if self.wrong is None
            else f", {self.repaired} of {self.wrong} wrong ones to the true class (precision "
            f"{_percent(self.precision)}, recall {_percent(self.recall)})"
        )
        return (
            f"{self.changed} of {self.seen} labels changed{known}; rows as given, columns as "
            f"trained on\n{table.to_string()}"
        )


def _percent(part: float | None) -> str:
    return "none" if part is None else f"{100 * part:.1f} %"


class Changes:
    """A rule as the training loop's `relabel` hook that counts, on the device, what it changes.

    `rule` maps logits (B, K) and labels (B,) to new labels (B,). `truth`, where it is known, yields
    the true labels of the same batches (see `truth_batches`). `counts`, int32, holds labels by
    given, new and (with `truth`) true class; a resumed epoch goes on from `counts`, as lists.
    Each rank counts its own share; what is read is of all.
    """

    def __init__(
        self,
        rule: Callable[[Tensor, Tensor], Tensor],
        device: torch.device,
        truth: Iterator[Tensor] | None = None,
        counts: list | None = None,
    ) -> None:
        self._rule = rule
        self._truth = truth
        axes = 2 if truth is None else 3
        # int32 is exact beyond any epoch, and every device adds it up.
        self._counts = torch.zeros((len(CLASSES),) * axes, dtype=torch.int32, device=device)
        if counts is not None and ranks.rank() == 0:
            self._counts.copy_(torch.tensor(counts))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The rule's labels, counted."""
        new = self._rule(logits, labels)
        cell = labels * len(CLASSES) + new
        if self._truth is not None:
            cell = cell * len(CLASSES) + next(self._truth)
        # Unlike bincount, this never asks the device how large the numbers are.
        self._counts.view(-1).scatter_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
        return new

    def totals(self) -> list:
        """The counts so far, which a resumed epoch can go on from; waits for the device."""
        return ranks.total(self._counts).tolist()

    def read(self) -> Repairs:
        """What the labels so far became; waits for the device."""
        counts = torch.tensor(self.totals())
        if self._truth is None:
            return Repairs(counts)
        given, new, true = torch.meshgrid(3 * [torch.arange(len(CLASSES))], indexing="ij")
        wrong = given != true
        return Repairs(
            counts.sum(dim=2), int(counts[wrong].sum()), int(counts[wrong & (new == true)].sum())
        )


def truth_batches(
    split: Split, *, batch_size: int, seed: int, epoch: int, first_step: int = 0
) -> Iterator[Tensor]:
    """The true labels, int64 (B,), of this rank's share of the batches of `training_batches`.

    They come in the same order for the same arguments, whatever the augmentation.
    """
    # The order hangs on the number of images alone, so images of one pixel take the same road.
    stand_in = Split(split.images[:, :, :1, :1], split.true_labels)
    batches = training_batches(
        stand_in,
        batch_size=batch_size,
        augmentation=Augmentation(crop=1, flip=False),
        seed=seed,
        epoch=epoch,
        first_step=first_step,
    )
    return (labels[ranks.own_share(len(labels)).rows] for _, labels in batches)
