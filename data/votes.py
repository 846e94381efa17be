"""The votes of FER+ (Barsoum et al., ICMI 2016): ten annotators for each image of FER2013."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from data.reading.bounded import quoted
from data.reading.tables import read_table
from data.types import SPLITS
from runtime.errors import UserError, reading
from runtime.files import open_regular

# The columns of the votes, in the order of CLASSES.
VOTES_OF_CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
MAX_TABLE_BYTES = 1 << 26  # FER+'s takes 1.6 MB
VOTES_PATTERN = "[0-9]{1,6}"


def load_votes(path: Path | str, usage: str | None = None) -> np.ndarray:
    """Read the votes for the seven classes from FER+'s table: int64 (N, 7), columns as CLASSES.

    One row per image, in the order of the file, only those of `usage` (one of SPLITS) if given. An
    image without a vote for any of the seven is a row of zeros. Raises UserError for a malformed
    table and when no row is left; all rows are checked, whatever `usage`.
    """
    columns = ["Usage", *VOTES_OF_CLASSES]
    with reading(path), open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        parts = read_table(stream, str(path), columns, size=size, max_size=MAX_TABLE_BYTES)
        table = pd.concat(list(parts))[columns].apply(lambda column: column.str.strip())
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
