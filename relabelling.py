"""Relabelling: doubtful labels are trained as the predicted class where expressions are similar.

The second contribution of the paper: the rule, the matrices of Facial Expression Similarity (FES),
which say how often annotators see two expressions in one face, and the counts of changed labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data.types import CLASSES
from runtime.errors import reading
from runtime.files import open_regular, write_text
from runtime.logs import log
from runtime.processes import all_reduce_sum, rank
from runtime.run import Progress

# The halves of a matrix that was computed elsewhere may differ by rounding.
SYMMETRY_TOLERANCE = 1e-6


# --- the rule


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
    if fes is not None:  # as published; without FES a tie changes the label to the first of equals
        doubtful &= (gap > 0) & (fes[labels, likeliest] > fes_threshold)
    return torch.where(doubtful, likeliest, labels)


class Relabelling:
    """The relabelling of a training: applies `relabel` from the second epoch on, and counts.

    The counts, int32 (K, K) on `device`, are labels of the epoch under way by given (row) and new
    (column) class of `classes`. Each process counts its shard; results are of all.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        device: torch.device,
        *,
        threshold: float,
        fes: Tensor | None,
        fes_threshold: float,
    ) -> None:
        """`threshold`, `fes` and `fes_threshold` are those of `relabel`."""
        self._classes = classes
        self._threshold = threshold
        self._fes = None if fes is None else fes.to(device)
        self._fes_threshold = fes_threshold
        # int32 is exact beyond any epoch, and every device can add it up.
        self._counts = torch.zeros(2 * (len(classes),), dtype=torch.int32, device=device)

    def begin(self, progress: Progress) -> None:
        """Count from zero, or from where an interrupted epoch was."""
        self._counts.zero_()
        counts = progress.extra.pop("counts", None)
        if counts is not None and rank() == 0:
            self._counts.copy_(torch.tensor(counts))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The labels, int64 (B,), to train the next batch on, without a host sync."""
        new = relabel(
            logits,
            labels,
            threshold=self._threshold,
            fes=self._fes,
            fes_threshold=self._fes_threshold,
        )
        pair = labels * len(self._classes) + new
        # Unlike bincount, this needs no host sync.
        self._counts.view(-1).scatter_add_(0, pair, torch.ones_like(pair, dtype=torch.int32))
        return new

    def keep_counts(self, progress: Progress) -> None:
        """Put the counts so far into `progress`, in case the epoch is interrupted."""
        progress.extra["counts"] = self.totals()

    def finish(self, progress: Progress, record: dict[str, Any]) -> None:
        """Put the counts of the epoch into its `record`, the history of changes and the log."""
        counts = np.array(progress.extra.pop("counts"))
        labels, changed = int(counts.sum()), int(counts.sum() - counts.trace())
        record |= {"labels": labels, "changed": changed}
        readable = len(counts) <= 20  # a table of all pairs
        progress.extra.setdefault("changes", []).extend(
            {"epoch": progress.epoch + 1, "given": given, "new": new, "labels": int(counts[i, j])}
            for i, given in enumerate(self._classes)
            for j, new in enumerate(self._classes)
            if counts[i, j] or readable
        )
        log.info("%d of %d labels changed", changed, labels)
        if readable:
            table = pd.DataFrame(counts, index=self._classes, columns=self._classes)
            log.info("rows as given, columns as trained on\n%s", table.to_string())

    def totals(self) -> list[list[int]]:
        """The counts so far; waits for the device."""
        return all_reduce_sum(self._counts).tolist()


# --- the similarity of expressions


def _from_triangle(rows: str) -> np.ndarray:
    """A symmetric matrix with ones on its diagonal from the triangle above it, row by row."""
    matrix = np.eye(len(CLASSES))
    matrix[np.triu_indices(len(CLASSES), 1)] = [float(word) for word in rows.split()]
    return np.maximum(matrix, matrix.T)


# The published matrix, of all rows. Its sums were divided by 35,888, the lines of the file with
# its header, so `fes_matrix` of the 35,887 images gives up to 4e-6 more without `count`.
PUBLISHED_FES = _from_triangle(
    """
    .02718851 .02188297 .02002968 .04878107 .03223266 .05837538
              .00951736 .01147336 .02775054 .01381716 .03206117
                        .01524509 .02792287 .04619572 .03383849
                                  .02575007 .03452561 .05580243
                                            .03472185 .13838511
                                                      .05298048
    """
)
# Of the Training rows alone, as `python -m tools.fes fer2013new.csv --usage Training` prints it.
TRAINING_FES = _from_triangle(
    """
    .02683286 .02170527 .02006733 .04938491 .03268081 .05880208
              .00969808 .01164837 .02827606 .01408758 .03266128
                        .01518265 .02868282 .04625068 .03531377
                                  .02661336 .03475977 .05788780
                                            .03623424 .14288130
                                                      .05503896
    """
)


def fes_matrix(votes: np.ndarray, count: int | None = None) -> np.ndarray:
    """The similarity of every two classes: float64 (7, 7) in [0, 1], symmetric.

    `votes`: int (N, 7), N > 0, how many annotators chose each class of each image. For i != j,
    FES_ij = 1/N * sum over images with v_i > 0 and v_j > 0 of min(v_i, v_j) / max(v_i, v_j);
    1 on the diagonal. `count` replaces N, for comparison with figures that divide by another.
    """
    first, second = votes[:, :, None], votes[:, None, :]
    # An image that lacks votes for one of two classes adds min = 0 to their sum.
    ratios = np.minimum(first, second) / np.maximum(np.maximum(first, second), 1)
    matrix = ratios.sum(axis=0) / (count or len(votes))
    np.fill_diagonal(matrix, 1.0)
    return matrix


def save_fes(matrix: np.ndarray, path: Path | str) -> None:
    """Write a matrix as CSV, class names as header and first column; read back unchanged."""
    table = pd.DataFrame(matrix, index=CLASSES, columns=CLASSES)
    write_text(path, table.to_csv(lineterminator="\n"))


def load_fes(path: Path | str) -> np.ndarray:
    """Read a matrix that `save_fes` wrote: float64 (7, 7).

    Raises UserError unless rows and columns are the classes in their order, and the matrix is
    symmetric with values in [0, 1].
    """
    expected = f"rows and columns {','.join(CLASSES)} of a symmetric matrix with values in [0, 1]"
    with reading(path, expected):
        with open_regular(path) as file:
            table = pd.read_csv(
                file, index_col=0, skipinitialspace=True, float_precision="round_trip"
            )
        columns, rows = table.columns.str.strip().tolist(), table.index.str.strip().tolist()
        if columns != list(CLASSES) or rows != list(CLASSES):
            raise ValueError(f"columns {','.join(columns)}, rows {','.join(rows)}")
        matrix = table.to_numpy().astype(np.float64)
        similar = abs(matrix - matrix.T) <= SYMMETRY_TOLERANCE
        # NaN is neither in the range nor similar.
        for i, j in np.argwhere(~(similar & (matrix >= 0.0) & (matrix <= 1.0)))[:1]:
            raise ValueError(
                f"{CLASSES[i]} and {CLASSES[j]} have {matrix[i, j]:.8g} and {matrix[j, i]:.8g}"
            )
    return matrix


def choose_fes(file: str | None, protocol: str) -> np.ndarray:
    """The matrix of `file`; without one, of the Training rows, or of all with protocol "paper"."""
    if file is not None:
        return load_fes(file)
    return TRAINING_FES if protocol == "clean" else PUBLISHED_FES
