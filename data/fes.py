"""Facial Expression Similarity (FES): how often annotators see two expressions in one face.

Computed from the FER+ votes (Barsoum et al., ICMI 2016). Auto-FERNet moves a doubtful label only
between classes that are similar enough.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd

from data.bounded import table_lines
from data.readers import CLASSES, SPLITS, check_fields, describe_table_error
from utils import UserError, write_text

# What the votes' table calls each class, in the order of CLASSES.
VOTES_OF_CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
MAX_TABLE_BYTES = 1 << 26  # FER+'s takes 1.6 MB
VOTES_PATTERN = "[0-9]{1,6}"
# Rounding may part the two halves of a matrix that was computed elsewhere.
SYMMETRY_TOLERANCE = 1e-6


def _from_triangle(rows: str) -> np.ndarray:
    """A symmetric matrix with ones on its diagonal from the triangle above it, row by row."""
    matrix = np.eye(len(CLASSES))
    matrix[np.triu_indices(len(CLASSES), 1)] = [float(word) for word in rows.split()]
    return np.maximum(matrix, matrix.T)


# The published matrix, of all rows. Its sums were divided by 35,888, the lines of the file with
# its header, so `fes_matrix` of the 35,887 images gives up to 4e-6 more unless told so.
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
    1 on the diagonal. `count` stands in for N where others divided by another number.
    """
    first, second = votes[:, :, None], votes[:, None, :]
    # An image that lacks votes for one of two classes adds min = 0 to their sum.
    ratios = np.minimum(first, second) / np.maximum(np.maximum(first, second), 1)
    matrix = ratios.sum(axis=0) / (count or len(votes))
    np.fill_diagonal(matrix, 1.0)
    return matrix


def load_votes(path: Path | str, usage: str | None = None) -> np.ndarray:
    """Read the votes for the seven classes from FER+'s table: int64 (N, 7), columns as CLASSES.

    A row an image in the order of the file, only those of `usage` (one of SPLITS) when given. An
    image without a vote for any of the seven is a row of zeros. Raises UserError when the table
    lacks a column, when no row is left, and for any vote that is not a whole number or Usage that
    is not a split, whichever rows are asked for.
    """
    if usage is not None and usage not in SPLITS:
        raise UserError(f"Usage {usage!r} asked for, expected {', '.join(SPLITS)}")
    columns = ("Usage", *VOTES_OF_CLASSES)
    table = _read_table(path, f"a table with the columns {','.join(columns)}")
    table.columns = [name.strip() for name in table.columns]
    missing = [name for name in columns if list(table.columns).count(name) != 1]
    if missing:
        raise UserError(
            f"{path}, line 1: no column {', '.join(missing)}, or several; "
            f"expected the columns {','.join(columns)}"
        )
    table = table[list(columns)].apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    for column in columns:
        _check_column(path, table[column])
    chosen = table if usage is None else table[table["Usage"] == usage]
    if chosen.empty:
        raise UserError(f"{path}: no {usage or 'image'} rows found, expected at least one")
    return chosen[list(VOTES_OF_CLASSES)].to_numpy().astype(np.int64)


def _check_column(path: Path | str, column: pd.Series) -> None:
    if column.name == "Usage":
        good, expected = column.isin(SPLITS), ", ".join(SPLITS)
    else:
        good, expected = column.str.fullmatch(VOTES_PATTERN), "a whole number of 0 to 999999"
    if not good.all():
        row = good.index[~good][0]
        raise UserError(
            f"{path}, line {row + 2}: {column.name} is {_shown(column[row])}, expected {expected}"
        )


def save_fes(matrix: np.ndarray, path: Path | str) -> None:
    """Write a matrix as a CSV with the class names as header and first column, every digit kept.

    Raises UserError when `path` cannot be written.
    """
    table = pd.DataFrame(matrix, index=CLASSES, columns=CLASSES)
    write_text(path, table.to_csv(lineterminator="\n"))


def load_fes(path: Path | str) -> np.ndarray:
    """Read a matrix that `save_fes` wrote: float64 (7, 7).

    Raises UserError unless it names the classes in their order both ways, and is symmetric with
    numbers in [0, 1].
    """
    expected = f"7 rows of a class and 7 numbers, the classes in the order {','.join(CLASSES)}"
    table = _read_table(path, expected)
    header, names = list(table.columns)[1:], table.iloc[:, 0].str.strip().tolist()
    for what, found in (("columns", header), ("rows", names)):
        found = [name.strip() for name in found]
        if found != list(CLASSES):
            raise UserError(f"{path}: {what} {_shown(','.join(found))}, expected {expected}")
    matrix = np.array([[_number(word) for word in row] for row in table.to_numpy()[:, 1:]])
    # What is not a number fails here too.
    wrong = np.argwhere(~((matrix >= 0.0) & (matrix <= 1.0)))
    for row, column in wrong[:1]:
        raise UserError(
            f"{path}, line {row + 2}: {CLASSES[row]} and {CLASSES[column]} have "
            f"{_shown(table.iloc[row, column + 1])}, expected a number of 0 to 1"
        )
    wrong = np.argwhere(abs(matrix - matrix.T) > SYMMETRY_TOLERANCE)
    for row, column in wrong[:1]:
        raise UserError(
            f"{path}: {CLASSES[row]} and {CLASSES[column]} have {matrix[row, column]:.8g} but "
            f"the other way round {matrix[column, row]:.8g}, expected the same"
        )
    return matrix


def _read_table(path: Path | str, expected: str) -> pd.DataFrame:
    """A CSV as text, row r of the table being line r + 2 of the file."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_TABLE_BYTES:
                raise UserError(f"{path}: {size} bytes, expected at most {MAX_TABLE_BYTES}")
            table = pd.read_csv(
                table_lines(stream, str(path)),
                dtype=str,
                na_filter=False,
                skip_blank_lines=False,
                encoding_errors="replace",
            )
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}), expected {expected}"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path}: {describe_table_error(error)}; expected {expected}") from None
    check_fields(table, str(path))
    return table


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
