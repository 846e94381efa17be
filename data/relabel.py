"""Relabelling: doubtful labels are replaced by the predicted class, and the changes counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from data.augment import Augmentation
from data.batches import training_batches
from data.types import CLASSES, Split
from runtime.processes import all_reduce_sum, rank, shard


def relabel(
    logits: Tensor, labels: Tensor, *, threshold: float, fes: Tensor | None, fes_threshold: float
) -> Tensor:
    """The labels to train a batch on: int64 (B,), doubtful ones replaced by the top class.

    `logits` float (B, K), `labels` int64 (B,) in 0..K-1, `fes` float (K, K) or None, all on one
    device, without a host sync. With p = softmax(logits) and gap = max p - p[label], a
    label becomes argmax p (the first of equals) when 0 < gap < `threshold` and
    fes[label, argmax p] > `fes_threshold`; without `fes`, when gap < `threshold`.
    """
    # Transposed, as the softmax of short rows is far slower on CPUs than that of columns.
    p = logits.t().softmax(dim=0)
    highest, likeliest = p.max(dim=0)
    gap = highest - p.gather(0, labels[None]).squeeze(0)
    doubtful = gap < threshold
    if fes is not None:
        doubtful &= (gap > 0) & (fes[labels, likeliest] > fes_threshold)
    return torch.where(doubtful, likeliest, labels)


@dataclass(frozen=True, eq=False)
class Repairs:
    """The changes of the labels of an epoch.

    `matrix` int64 (K, K) on the CPU: number of labels by given (row) and new (column) class of
    `classes`, unchanged ones on the diagonal. `wrong`: given labels that were not the true ones;
    `repaired`: those of them changed to the true one; both None where the truth is not known.
    """

    matrix: Tensor
    wrong: int | None = None
    repaired: int | None = None
    classes: tuple[str, ...] = CLASSES

    @property
    def seen(self) -> int:
        """The number of labels."""
        return int(self.matrix.sum())

    @property
    def changed(self) -> int:
        """The number of labels that changed."""
        return self.seen - int(self.matrix.trace())

    @property
    def precision(self) -> float | None:
        """The share of the changed labels that became true, in [0, 1]; None without any."""
        return self.repaired / self.changed if self.repaired is not None and self.changed else None

    @property
    def recall(self) -> float | None:
        """The share of the wrong labels that became true, in [0, 1]; None without any."""
        return self.repaired / self.wrong if self.repaired is not None and self.wrong else None

    def record(self) -> dict[str, Any]:
        """For the epoch's record: labels, those changed, and precision and recall if known."""
        known = {} if self.wrong is None else {"precision": self.precision, "recall": self.recall}
        return {"labels": self.seen, "changed": self.changed, **known}

    def rows(self, epoch: int) -> list[dict[str, Any]]:
        """A row for each pair of classes: the number of labels of the one that became the other."""
        return [
            {"epoch": epoch, "given": given, "new": new, "labels": int(self.matrix[i, j])}
            for i, given in enumerate(self.classes)
            for j, new in enumerate(self.classes)
        ]

    def describe(self) -> str:
        """For the log: the number of changed labels, and the matrix as a table."""
        table = pd.DataFrame(self.matrix.numpy(), index=self.classes, columns=self.classes)
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


class Relabelling:
    """The relabelling of a training: applies `relabel` from the second epoch on, and counts.

    Counts, int32 on the device of the labels, are of the epoch under way, by given, new and, where
    `training` has true labels, true class. Each process counts its shard; results are of all.
    """

    def __init__(
        self,
        training: Split,
        *,
        threshold: float,
        fes: Tensor | None,
        fes_threshold: float,
        batch_size: int,
        seed: int,
        classes: tuple[str, ...] = CLASSES,
    ) -> None:
        """`training`, `batch_size` and `seed` as for `training_batches`; the rest as `relabel`.

        `classes` are the names of the labels, in their order.
        """
        self._classes = classes
        self._training = training
        self._threshold = threshold
        self._fes = None if fes is None else fes.to(training.labels.device)
        self._fes_threshold = fes_threshold
        self._batch_size = batch_size
        self._seed = seed
        self._truth: Iterator[Tensor] | None = None
        axes = 2 if training.true_labels is None else 3
        # int32 is exact beyond any epoch, and every device can add it up.
        self._counts = torch.zeros(
            (len(classes),) * axes, dtype=torch.int32, device=training.labels.device
        )

    def start_epoch(self, epoch: int, step: int, counts: list | None) -> bool:
        """Prepare epoch `epoch` (from 0) from step `step` on, continuing `counts`.

        Returns False for epoch 0, in which labels are never changed.
        """
        self._counts.zero_()
        if counts is not None and rank() == 0:
            self._counts.copy_(torch.tensor(counts))
        if self._training.true_labels is not None:
            self._truth = truth_batches(
                self._training,
                batch_size=self._batch_size,
                seed=self._seed,
                epoch=epoch,
                first_step=step,
            )
        return epoch > 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The labels, int64 (B,), to train the next batch on."""
        new = relabel(
            logits,
            labels,
            threshold=self._threshold,
            fes=self._fes,
            fes_threshold=self._fes_threshold,
        )
        cell = labels * len(self._classes) + new
        if self._truth is not None:
            cell = cell * len(self._classes) + next(self._truth)
        # Unlike bincount, this needs no host sync.
        self._counts.view(-1).scatter_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
        return new

    def totals(self) -> list:
        """The counts so far, for `start_epoch` of a resumed run; waits for the device."""
        return all_reduce_sum(self._counts).tolist()

    def read(self) -> Repairs:
        """The changes so far; waits for the device."""
        counts = torch.tensor(self.totals())
        if self._training.true_labels is None:
            return Repairs(counts, classes=self._classes)
        given, new, true = torch.meshgrid(3 * [torch.arange(len(self._classes))], indexing="ij")
        wrong = given != true
        repaired = int(counts[wrong & (new == true)].sum())
        return Repairs(counts.sum(dim=2), int(counts[wrong].sum()), repaired, self._classes)


def truth_batches(
    split: Split, *, batch_size: int, seed: int, epoch: int, first_step: int = 0
) -> Iterator[Tensor]:
    """The true labels, int64 (B,), of this process's shard of the batches of `training_batches`.

    The order does not depend on the augmentation.
    """
    assert split.true_labels is not None
    # The order depends on the number of images only, so images of one pixel suffice.
    stand_in = Split(split.images[:, :, :1, :1], split.true_labels)
    batches = training_batches(
        stand_in,
        batch_size=batch_size,
        augmentation=Augmentation(crop=1, flip=False),
        seed=seed,
        epoch=epoch,
        first_step=first_step,
    )
    return (labels[shard(len(labels)).rows] for _, labels in batches)
