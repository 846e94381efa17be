"""Tables of pixels, and lists that give images their classes."""

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
from data.reading.images import SUFFIXES
from data.reading.layouts import plain, split_of
from data.reading.sources import Entry, Item
from data.types import SIDE, SPLITS
from runtime.errors import UserError, reading
from runtime.processes import hide_progress

COLUMNS = ("emotion", "pixels", "Usage")
_COLUMN_OF = {
    "emotions": "emotion", "label": "emotion", "labels": "emotion", "class": "emotion",
    "expression": "emotion", "pixel": "pixels", "split": "usage", "set": "usage",
}  # fmt: skip
_LABEL = re.compile(r"\s*([0-7])(?:[.,]0*)?\s*")
ROWS_AT_ONCE = 2048
MAX_ROWS = 200_000  # blank ones included; FER2013 has 35,887
MAX_HEADER = 1024  # bytes; pandas takes minutes for a hundred thousand columns
MAX_TABLE_BYTES = 1 << 30
MAX_LIST_BYTES = 1 << 26
MAX_LIST_FIELDS = 5  # more are the votes of FER+
_ENDS = "|".join(suffix[1:] for suffix in SUFFIXES)
# The name of an image and its label, in a line of a list.
_LISTED = re.compile(rf"([^;,\t\"']+\.(?:{_ENDS}))[\"']?[ \t,;]+[\"']?(\w+)", re.I)


# --- tables


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
        header = re.split(rb"[\r\n]", stream.read(MAX_HEADER + 1), maxsplit=1)[0].decode("utf-8", "replace")
        if len(header) > MAX_HEADER:
            raise ValueError(f"line 1: more than {MAX_HEADER} bytes")
        stream.seek(0)
        separator = max(",;\t|", key=header.count)
        parts = pd.read_csv(
            stream,
            sep=separator,
            encoding="utf-8-sig",
            dtype=str,
            na_filter=False,
            skipinitialspace=True,
            skip_blank_lines=False,
            encoding_errors="replace",
            chunksize=ROWS_AT_ONCE,
        )
        for part in parts:
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


def read_pixels(item: Item) -> Iterator[tuple[np.ndarray, str | None, str]]:
    """Yield each image of a table, uint8 (48, 48), its split if known, and its label as text."""
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
                yield _image_of(pixels, at), split, label[1]


def _rename(column: str) -> str:
    name = plain(column.strip(" \"'\ufeff"))
    name = _COLUMN_OF.get(name, name)
    return next((known for known in COLUMNS if known.lower() == name), name)


def _image_of(pixels: str, at: str) -> np.ndarray:
    count = SIDE * SIDE
    try:
        values = np.fromstring(pixels, np.int64, sep=" ")
        if values.size == count and values.min() >= 0 and values.max() <= 255:
            return values.astype(np.uint8).reshape(SIDE, SIDE)
    except (ValueError, DeprecationWarning):
        pass
    # Slower, but accepts "[70, 71, ...]" and "70.0", and finds what is wrong.
    words = pixels.strip("[] ").replace(",", " ").split()
    if len(words) != count:
        raise UserError(f"{at}: {len(words)} pixel values, expected {count}")
    for position, word in enumerate(words, 1):
        if not re.fullmatch(r"[0-9]{1,3}(\.0*)?", word) or float(word) > 255:
            raise UserError(
                f"{at}: pixel {position} is {quoted(word)}, expected a whole number of 0 to 255"
            )
    return np.array([float(word) for word in words]).astype(np.uint8).reshape(SIDE, SIDE)


# --- lists


def look_at(entry: Entry) -> tuple[set[str], bool]:
    """The columns of a table, and whether it lists images with labels."""
    with entry.open() as stream:
        lines = stream.read(2 * MAX_HEADER).decode("utf-8-sig", "replace").splitlines() or [""]
    listed = any(
        _LISTED.search(line) and len(re.split("[,;\t]", line)) <= MAX_LIST_FIELDS
        for line in lines[:2]
    )
    return {_rename(name) for name in re.split("[,;\t|]", lines[0])}, listed


def listed_images(entries: list[Entry], lists: list[Entry]) -> tuple[str, list[Item]]:
    """The images that lists give labels, as RAF-DB's `list_patition_label.txt`, and their root."""
    labels: dict[str, tuple[str, str | None]] = {}
    for entry in lists:
        with entry.open() as stream:
            text = stream.read(MAX_LIST_BYTES).decode("utf-8-sig", "replace")
        split = split_of(entry.name.rpartition(".")[0])
        for match in filter(None, map(_LISTED.search, text.splitlines())):
            labels[_key(match[1].strip().split("/"))] = match[2], split
    items, taken = [], set()
    for entry in sorted(entries, key=lambda entry: ("aligned" not in entry.path, entry.path)):
        parts = entry.path.split("/") if entry.is_image() else []
        keys = [_key(parts[-n:]) for n in range(min(3, len(parts)), 0, -1)]
        key = next((key for key in keys if key in labels and key not in taken), None)
        if key is not None:
            taken.add(key)
            label, split = labels[key]
            folders = (split_of(part) for part in reversed(parts[:-1]))
            split = split_of(parts[-1].partition("_")[0]) or next(filter(None, folders), split)
            items.append(Item(entry, split, label))
    used = [os.path.dirname(entry.path) for entry in (*lists, *(item.entry for item in items))]
    return os.path.commonpath(used) if all(used) else "", items


def _key(parts: list[str]) -> str:
    stem = re.sub(rf"(_aligned)?\.({_ENDS})$", "", parts[-1], flags=re.I)
    return "/".join([*parts[:-1], stem]).lower()
