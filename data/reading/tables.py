"""Tables of pixels, and the list that gives the images of RAF-DB their classes."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.reading.bounded import quoted
from data.reading.layouts import plain, split_of
from data.reading.sources import Entry, Item
from data.types import SIDE, SPLITS
from runtime.errors import UserError, reading
from runtime.processes import hide_progress

COLUMNS = ("emotion", "pixels", "Usage")
_COLUMN_OF = {name.lower(): name for name in COLUMNS}
_LABEL = re.compile(r"\s*([0-7])(?:[.,]0*)?\s*")
ROWS_AT_ONCE = 2048
MAX_ROWS = 200_000  # blank ones included; FER2013 has 35,887
MAX_HEADER = 1024  # bytes; pandas takes minutes for a hundred thousand columns
MAX_TABLE_BYTES = 1 << 30
MAX_LIST_BYTES = 1 << 26
# An image and its class, in a line of RAF-DB's list.
LIST, _LISTED = "list_patition_label.txt", re.compile(r"(\w+)\.\w+ ([0-9])\s*")


def read_table(
    stream: BinaryIO,
    where: str,
    columns: Sequence[str],
    *,
    size: int,
    max_size: int,
    rename: Callable[[str], str] = str,
) -> Iterator[pd.DataFrame]:
    """Yield a CSV of `size` bytes in parts, as text; index n is line n + 2 of the file.

    The separator may be a comma, semicolon, tab or bar. `rename` is applied to the names of the
    columns. Blank lines are rows of empty text. Raises UserError, naming `where`, for a table that
    is malformed, too large, or lacks one of `columns`.
    """
    with reading(where, f"a table with the columns {','.join(columns)}"):
        if size > max_size:
            raise ValueError(f"{size} bytes, at most {max_size} are read")
        start = stream.read(MAX_HEADER).decode("utf-8-sig", "replace")
        header = re.split(r"[\r\n]", start, maxsplit=1)[0]
        if len(header) == MAX_HEADER:
            raise ValueError(f"line 1: more than {MAX_HEADER} bytes")
        stream.seek(0)
        for part in pd.read_csv(
            stream, sep=max(",;\t|", key=header.count), chunksize=ROWS_AT_ONCE, dtype=str,
            encoding="utf-8-sig", encoding_errors="replace", na_filter=False,
            skipinitialspace=True, skip_blank_lines=False,
        ):  # fmt: skip
            names = [rename(name) for name in part.columns.str.strip()]
            if missing := [name for name in columns if names.count(name) != 1]:
                raise ValueError(
                    f"line 1: no column {', '.join(missing)}, or several, in {quoted(header, 80)}"
                )
            # pandas makes an index of the first fields if there are more than names.
            if not isinstance(part.index, pd.RangeIndex):
                raise ValueError(f"line 2: more than {len(names)} fields")
            if part.index.stop > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS} lines")
            part.columns = pd.Index(names)
            yield part


def read_pixels(item: Item) -> Iterator[tuple[Item, np.ndarray]]:
    """Yield each row of a table: an item whose name is the label, and the image, uint8 (48, 48)."""
    entry, split, _ = item
    with (
        reading(entry.where),
        entry.open() as stream,
        warnings.catch_warnings(),
        tqdm(None, "reading", unit=" rows", leave=False, disable=hide_progress()) as bar,
    ):
        # Older numpy only warns of text after the last number it could read.
        warnings.simplefilter("error", DeprecationWarning)
        for part in read_table(
            stream, entry.where, COLUMNS[:2], size=entry.size, max_size=MAX_TABLE_BYTES,
            rename=_rename,
        ):  # fmt: skip
            bar.update(len(part))
            usages = part["Usage"] if "Usage" in part else [None] * len(part)
            rows = zip(part.index + 2, part["emotion"], part["pixels"], usages, strict=True)
            for line, emotion, pixels, usage in rows:
                if not (emotion or pixels or usage):
                    continue
                at, label = f"{entry.where}, line {line}", _LABEL.fullmatch(emotion)
                if label is None:
                    expected = "a class of 0 to 6, or 7 for contempt"
                    raise UserError(f"{at}: emotion {quoted(emotion)}, expected {expected}")
                if usage is not None and (split := split_of(usage)) is None:
                    expected = ", ".join(SPLITS)
                    raise UserError(f"{at}: Usage {quoted(usage)}, expected {expected}")
                yield Item(entry, split, label[1]), _image_of(pixels, at)


def _rename(column: str) -> str:
    return _COLUMN_OF.get(plain(column), column)


def _image_of(pixels: str, at: str) -> np.ndarray:
    with reading(at, f"{SIDE * SIDE} whole numbers of 0 to 255"):
        values = np.fromstring(pixels, np.int64, sep=" ").reshape(SIDE, SIDE)
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"pixels of {values.min()} to {values.max()}")
        return values.astype(np.uint8)


def columns_of(entry: Entry) -> set[str]:
    """The names of the columns of a table."""
    with entry.open() as stream:
        lines = stream.read(MAX_HEADER).decode("utf-8-sig", "replace").splitlines() or [""]
    return {_rename(name) for name in re.split("[,;\t|]", lines[0])}


def listed_images(entries: list[Entry], listing: Entry) -> tuple[str, list[Item]]:
    """The images of RAF-DB that the file LIST gives classes, and the folder of all.

    Aligned ones are preferred to the originals.
    """
    with listing.open() as stream:
        text = stream.read(MAX_LIST_BYTES).decode("utf-8", "replace")
    labels = {match[1]: match[2] for match in map(_LISTED.fullmatch, text.splitlines()) if match}
    items: dict[str, Item] = {}
    images = filter(Entry.is_image, entries)
    for entry in sorted(images, key=lambda image: ("aligned" not in image.path, image.path)):
        stem = entry.name.rpartition(".")[0].removesuffix("_aligned")
        if stem in labels:
            items.setdefault(stem, Item(entry, split_of(stem.partition("_")[0]), labels[stem]))
    used = [os.path.dirname(entry.path) for entry in (listing, *(i.entry for i in items.values()))]
    return os.path.commonpath(used) if all(used) else "", list(items.values())
