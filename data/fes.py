"""Facial Expression Similarity (FES): how often annotators see two expressions in one face.

Computed from the FER+ votes (Barsoum et al., ICMI 2016). Relabelling changes a label only to a
class that is similar enough.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.reading.bounded import quoted
from data.reading.tables import read_table
from data.types import CLASSES, SPLITS
from runtime.errors import UserError, reading
from runtime.files import write_text

# The columns of the votes, in the order of CLASSES.
VOTES_OF_CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
MAX_TABLE_BYTES = 1 << 26  # FER+'s takes 1.6 MB
VOTES_PATTERN = "[0-9]{1,6}"
# The halves of a matrix that was computed elsewhere may differ by rounding.
SYMMETRY_TOLERANCE = 1e-6


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


def load_votes(path: Path | str, usage: str | None = None) -> np.ndarray:
    """Read the votes for the seven classes from FER+'s table: int64 (N, 7), columns as CLASSES.

    One row per image, in the order of the file, only those of `usage` (one of SPLITS) if given. An
    image without a vote for any of the seven is a row of zeros. Raises UserError for a malformed
    table and when no row is left; all rows are checked, whatever `usage`.
    """
    if usage is not None and usage not in SPLITS:
        raise UserError(f"Usage {usage!r} asked for, expected {', '.join(SPLITS)}")
    columns = ["Usage", *VOTES_OF_CLASSES]
    table = _read_table(path, columns)[columns].apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    for name, column in table.items():
        if name == "Usage":
            good, expected = column.isin(SPLITS), ", ".join(SPLITS)
        else:
            good, expected = column.str.fullmatch(VOTES_PATTERN), "a whole number of 0 to 999999"
        for row in column.index[~good][:1]:
            word = quoted(column[row], 60)
            raise UserError(f"{path}, line {row + 2}: {name} is {word}, expected {expected}")
    chosen = table if usage is None else table[table["Usage"] == usage]
    if chosen.empty:
        raise UserError(f"{path}: no {usage or 'image'} rows found, expected at least one")
    return chosen[list(VOTES_OF_CLASSES)].to_numpy().astype(np.int64)


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
        table = _read_table(path, CLASSES)
        columns, rows = table.columns[1:].tolist(), table.iloc[:, 0].str.strip().tolist()
        if columns != list(CLASSES) or rows != list(CLASSES):
            raise ValueError(f"columns {','.join(columns)}, rows {','.join(rows)}")
        matrix = table.iloc[:, 1:].to_numpy().astype(np.float64)
        similar = abs(matrix - matrix.T) <= SYMMETRY_TOLERANCE
        # NaN is neither in the range nor similar.
        for i, j in np.argwhere(~(similar & (matrix >= 0.0) & (matrix <= 1.0)))[:1]:
            raise ValueError(
                f"{CLASSES[i]} and {CLASSES[j]} have {matrix[i, j]:.8g} and {matrix[j, i]:.8g}"
            )
    return matrix


def _read_table(path: Path | str, columns: Sequence[str]) -> pd.DataFrame:
    with reading(path), open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        parts = read_table(stream, str(path), columns, size=size, max_size=MAX_TABLE_BYTES)
        return pd.concat(list(parts))
