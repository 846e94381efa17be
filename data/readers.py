"""Sets of images with classes and splits: tables, images in class folders, or lists of images.

All give the same arrays, from a folder, an archive or a single table.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.bounded import MAX_HEADER, encoding_of, quoted, read_table
from data.images import SUFFIXES
from data.layouts import are_evident, plain, resolve_classes, split_of
from data.sources import Entry, Item, Sets, Sought, Source, class_folders, is_archive, open_source
from data.types import CLASSES, SIDE, SPLITS
from runtime.errors import UserError, reading
from runtime.processes import hide_progress

TABLE_NAMES = ("fer2013.csv", "icml_face_data.csv")
COLUMNS = ("emotion", "pixels", "Usage")
_COLUMN_OF = {
    "emotions": "emotion", "label": "emotion", "labels": "emotion", "class": "emotion",
    "expression": "emotion", "pixel": "pixels", "split": "usage", "set": "usage",
}  # fmt: skip
# A number, or the name of a class.
_LABEL = re.compile(r"\s*(?:([0-7])(?:[.,]0*)?|([^\W\d][\w -]{0,40}?))\s*")
_PREFIXES = ("train_", "val_", "valid_", "test_")  # of file names, where no folder says a split
MAX_CLASSES = 255
MAX_TABLE_BYTES = 1 << 30
MAX_LIST_BYTES = 1 << 26
MAX_LIST_FIELDS = 5  # more are the votes of FER+
_ENDS = "|".join(suffix[1:] for suffix in SUFFIXES)
# The name of an image and its label, in a line of a list.
_LISTED = re.compile(rf"([^;,\t\"']+\.(?:{_ENDS}))[\"']?[ \t,;]+[\"']?(\w+)", re.I)
EXPECTED = f"{', '.join(TABLE_NAMES)}, or images in folders such as train/happy/ and test/happy/"


SOUGHT = Sought(
    lambda entries: sets_in(entries),
    ("fer2013", "icmlfacedata"),
    "fer2013",
    f"no FER2013 there and no other set of images with classes; expected {EXPECTED}, or an archive "
    'of them: get FER2013 from Kaggle ("Challenges in Representation Learning: Facial Expression '
    'Recognition") and put it in data/ or name its path with --data; --data synthetic needs no '
    "download",
)


class Arrays(NamedTuple):
    """A set: images uint8 (N, 48, 48), labels uint8 (N,) of `classes`, usage uint8 (N,) of SPLITS.

    Splits that the source does not have are empty. A table keeps its row order; images are sorted
    by split and file name, whose numbers are not sorted by class. `notes` are lines that say what
    was decided.
    """

    images: np.ndarray
    labels: np.ndarray
    usage: np.ndarray
    classes: np.ndarray = np.array(CLASSES)
    notes: np.ndarray = np.array([], "U1")


class Row(NamedTuple):
    """An image that was read: uint8 (48, 48), its split if known, and the name of its class."""

    image: np.ndarray
    split: str | None
    name: str
    entry: Entry


# --- which sets there are


def sets_in(entries: list[Entry]) -> Sets:
    """The sets among files, each by its root: a folder, or its first table."""
    lists = []
    tables: dict[str, list[Item]] = defaultdict(list)
    for entry in entries:
        if entry.is_table():
            columns, listed = _look_at(entry)
            if {"emotion", "pixels"} <= columns or entry.name in TABLE_NAMES:
                split = None if "Usage" in columns else split_of(entry.name.rpartition(".")[0])
                # Tables whose names say the split are one set.
                folder = entry.path.removesuffix(entry.name)
                tables[folder if split else entry.path].append(Item(entry, split, ""))
            elif listed:
                lists.append(entry)
    found = {}
    for root, items in class_folders(entries).items():
        if any(item.split for item in items):
            items = [item for item in items if item.split]
        elif all(item.entry.name.lower().startswith(_PREFIXES) for item in items):
            items = [i._replace(split=split_of(i.entry.name.partition("_")[0])) for i in items]
        if len({plain(item.name) for item in items}) > 1:
            found[root] = items
    if lists:
        root, items = _listed_images(entries, lists)
        inside = [each for each in found if f"{each}/".startswith(f"{root}/" if root else "")]
        if items and not any(are_evident(i.name for i in found[each]) for each in inside):
            found = {each: found[each] for each in found if each not in inside} | {root: items}
    for items in tables.values():  # of one table, or of one for each split
        items.sort(key=lambda item: SPLITS.index(item.split or SPLITS[0]))
        found[items[0].entry.path] = items
    return found


def _look_at(entry: Entry) -> tuple[set[str], bool]:
    """The columns of a table, and whether it lists images with labels."""
    with entry.open() as stream:
        start = stream.read(2 * MAX_HEADER)
    text = start.decode(encoding_of(start), "replace")
    lines = text.splitlines() or [""]
    listed = any(
        _LISTED.search(line) and len(re.split("[,;\t]", line)) <= MAX_LIST_FIELDS
        for line in lines[:2]
    )
    return {_rename(name) for name in re.split("[,;\t|]", lines[0])}, listed


def _rename(column: str) -> str:
    name = plain(column.strip(" \"'\ufeff"))
    name = _COLUMN_OF.get(name, name)
    return next((each for each in COLUMNS if each.lower() == name), name)


def _listed_images(entries: list[Entry], lists: list[Entry]) -> tuple[str, list[Item]]:
    """The images that lists give labels, as RAF-DB's `list_patition_label.txt`, and their root."""
    labels: dict[str, tuple[str, str | None]] = {}
    for entry in lists:
        with entry.open() as stream:
            content = stream.read(MAX_LIST_BYTES)
        split = split_of(entry.name.rpartition(".")[0])
        for line in content.decode(encoding_of(content), "replace").splitlines():
            if found := _LISTED.search(line):
                labels[_key(found[1].strip().split("/"))] = found[2], split
    items, taken = [], set()
    for entry in sorted(entries, key=lambda each: ("aligned" not in each.path, each.path)):
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


# --- reading one


def read_set(path: Path) -> Arrays:
    """Read the set at `path`: a table, an archive, or a folder.

    Raises UserError, naming file and line or member, for anything malformed, and for a set without
    an image to train on.
    """
    with open_source(path) as source:
        single = path.is_file() and not is_archive(path)
        if single and not source.entries[0].is_table():
            raise UserError(f"{path}: no archive (zip or tar) and no table; expected {EXPECTED}")
        if single and not sets_in(source.entries):
            items = [Item(source.entries[0], None, "")]  # reading it says what is wrong
        else:
            items = source.choose(SOUGHT)
        table = not items[0].name
        if table:
            rows = [row for item in items for row in _read_table(item)]
        else:
            rows = [Row(image, i.split, i.name, i.entry) for i, image in source.read(items)]
        source.say_left_out(items)
    hints = [*path.absolute().parts[-3:], *items[0].entry.path.split("/")[:-1]]
    return _gather(rows, source, hints, table)


def _gather(rows: list[Row], source: Source, hints: list[str], table: bool) -> Arrays:
    parts = [split for split in SPLITS if any(row.split == split for row in rows)]
    if SPLITS[0] not in parts and (parts or not rows):
        raise UserError(f"{source.path}: holds no {SPLITS[0]} image, expected some to train on")
    usage: dict[str | None, int] = {None: 0, **{name: SPLITS.index(name) for name in parts}}
    if len(parts) == 2:
        usage[parts[1]] = 2
        source.say("of its two parts, the second is the test")
    with reading(source.path):
        classes, index, said = resolve_classes({row.name for row in rows}, hints, table)
        if not 1 < len(classes) <= MAX_CLASSES:
            raise ValueError(f"{len(classes)} classes; expected 2 to {MAX_CLASSES}")
    if said:
        source.say(said)
    if not table:
        rows.sort(key=lambda r: (usage[r.split], r.entry.name, index[r.name], r.entry.path))
    return Arrays(
        np.stack([row.image for row in rows]),
        np.array([index[row.name] for row in rows], np.uint8),
        np.array([usage[row.split] for row in rows], np.uint8),
        np.array(classes),
        np.array(source.notes, str),
    )


def _read_table(item: Item) -> Iterator[Row]:
    entry, split, _ = item
    numbered = None  # whether the classes are numbers
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
                at, found = f"{entry.where}, line {line}", _LABEL.fullmatch(emotion)
                if found is None or numbered not in (None, found[1] is not None):
                    expected = "a class of 0 to 6, or 7 for contempt"
                    raise UserError(f"{at}: emotion {quoted(emotion)}, expected {expected}")
                numbered = found[1] is not None
                if usage is not None and (split := split_of(usage)) is None:
                    expected = ", ".join(SPLITS)
                    raise UserError(f"{at}: Usage {quoted(usage)}, expected {expected}")
                yield Row(_pixels(pixels, at), split, found[1] or found[2], entry)


def _pixels(text: str, at: str) -> np.ndarray:
    count = SIDE * SIDE
    try:
        values = np.fromstring(text, np.int64, sep=" ")
        if values.size == count and values.min() >= 0 and values.max() <= 255:
            return values.astype(np.uint8).reshape(SIDE, SIDE)
    except (ValueError, DeprecationWarning):
        pass
    # Slower, but accepts "[70, 71, ...]" and "70.0", and finds what is wrong.
    words = text.strip("[] ").replace(",", " ").split()
    if len(words) != count:
        raise UserError(f"{at}: {len(words)} pixel values, expected {count}")
    for position, word in enumerate(words, 1):
        if not re.fullmatch(r"[0-9]{1,3}(\.0*)?", word) or float(word) > 255:
            raise UserError(
                f"{at}: pixel {position} is {quoted(word)}, expected a whole number of 0 to 255"
            )
    return np.array([float(word) for word in words]).astype(np.uint8).reshape(SIDE, SIDE)
