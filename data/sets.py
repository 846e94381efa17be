"""Loading a set of images with classes: FER2013 or any other, its three splits as tensors.

`load_set` opens what `--data` names, reads it or its cache as arrays, and makes splits of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from data.copies import drop_copies, mark_copies
from data.reading.cache import read_cached
from data.reading.layouts import plain, resolve_classes, split_of
from data.reading.sources import (
    Entry,
    Item,
    SetKind,
    Sets,
    Source,
    class_folders,
    open_source,
)
from data.reading.tables import LIST, columns_of, listed_images, read_pixels
from data.synthetic.fer2013 import draw_fer2013
from data.types import CLASSES, SPLITS, Arrays, DataSet, Split, count_differences
from runtime.errors import UserError

# FER2013's images per class, in the order of CLASSES.
COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "PublicTest": (467, 56, 496, 895, 653, 415, 607),
    "PrivateTest": (491, 55, 528, 879, 594, 416, 626),
}
TABLE_NAMES = ("fer2013.csv", "icml_face_data.csv")
_PREFIXES = ("train_", "val_", "valid_", "test_")  # of file names, where no folder says a split
MAX_CLASSES = 255


def load_set(path: str | Path, *, without_copies: bool = False) -> DataSet:
    """Load a set with the splits Training, PublicTest and PrivateTest from the value of `--data`.

    `path` is the set itself in any of its forms, a folder that contains it, or "synthetic". A split
    that the set does not have is a tenth of each class of Training, drawn, but the same for every
    run, as the images that one tests must not train another. Test images that are in Training too
    are marked; `without_copies` leaves them out of Training. What was decided, these copies, and
    counts other than FER2013's are logged. Raises UserError when no set is found or it is
    malformed.
    """
    if str(path) == "synthetic":
        return DataSet(CLASSES, draw_fer2013())
    with open_source(path, LabelledSets()) as source:
        arrays = read_cached(source, read_set)
    source.notes = arrays.notes.tolist()
    classes = tuple(arrays.classes.tolist())
    missing = [index for index in range(len(SPLITS)) if not (arrays.usage == index).any()]
    if missing:
        arrays = arrays._replace(usage=_draw_splits(arrays, missing))
        names = " and ".join(SPLITS[index] for index in missing)
        source.say(f"drawn from Training, a tenth of each class for each: {names}")
    splits = _split(arrays)
    for name, split in splits.items():
        if not len(split.labels):
            reason = f"too few images to draw {name} from; expected 10 of a class"
            raise UserError(f"{source.path}: {reason}")
    if classes == CLASSES and not missing:
        differences = [
            f"{name} {difference}"
            for name, split in splits.items()
            for difference in count_differences(split.labels, CLASSES, COUNTS[name])
        ]
        source.say_differences(differences, "FER2013")
    splits = mark_copies(splits)
    counts = {name: int(s.copies.sum()) for name, s in splits.items() if s.copies is not None}
    if any(counts.values()):
        copies = " and ".join(f"{count} of {name}" for name, count in counts.items())
        source.say(f"{copies} are pixel for pixel in Training too")
        if without_copies:
            before, splits = len(splits["Training"].labels), drop_copies(splits)
            rest = len(splits["Training"].labels)
            source.say(f"Training without them: {rest} of {before} images")
    source.log()
    return DataSet(classes, splits)


# --- which sets there are


class LabelledSets(SetKind):
    """FER2013 and other sets of images with classes: tables, class folders, lists of images."""

    names = ("fer2013", "icmlfacedata")
    start = "fer2013"
    others = re.compile(r"(.*/)?(ck(\+|plus)?(48)?|jaffe[^/]*)", re.I)  # CK+ and JAFFE
    missing = (
        "no FER2013 there and no other set of images with classes; expected "
        f"{', '.join(TABLE_NAMES)} or another table with the columns emotion and pixels, images "
        "in folders such as train/happy/ and test/happy/, or a zip or tar archive of them: get "
        'FER2013 from Kaggle ("Challenges in Representation Learning: Facial Expression '
        'Recognition") and put it in data/ or name its path with --data; --data synthetic needs no '
        "download"
    )

    def sets(self, entries: list[Entry]) -> Sets:
        tables: Sets = defaultdict(list)
        sets = {}
        for root, items in class_folders(entries).items():
            if any(item.split for item in items):
                items = [item for item in items if item.split]
            elif all(item.entry.name.lower().startswith(_PREFIXES) for item in items):
                items = [i._replace(split=split_of(i.entry.name.partition("_")[0])) for i in items]
            if len({plain(item.name) for item in items}) > 1:
                sets[root] = items
        for entry in filter(Entry.is_table, entries):
            if entry.name == LIST:
                root, items = listed_images(entries, entry)
                start = f"{root}/" if root else ""
                sets = {path: sets[path] for path in sets if not f"{path}/".startswith(start)}
                sets |= {root: items} if items else {}
                continue
            columns = columns_of(entry)
            if {"emotion", "pixels"} <= columns or entry.name in TABLE_NAMES:
                split = None if "Usage" in columns else split_of(entry.name.rpartition(".")[0])
                # Tables whose names say the split are one set.
                folder = entry.path.removesuffix(entry.name)
                tables[folder if split else entry.path].append(Item(entry, split, ""))
        for items in tables.values():  # of one table, or of one for each split
            items.sort(key=lambda item: SPLITS.index(item.split or SPLITS[0]))
            sets[items[0].entry.path] = items
        return sets


# --- reading one


def read_set(source: Source) -> Arrays:
    """Read the set of an open source: tables of pixels, or images.

    Raises UserError, naming file and line or member, for anything malformed, and for a set without
    an image to train on.
    """
    table = not source.items[0].name
    if table:
        pictures = [row for item in source.items for row in read_pixels(item)]
    else:
        pictures = list(source.read())
    source.say_left_out()
    parts = [split for split in SPLITS if any(item.split == split for item, _ in pictures)]
    if SPLITS[0] not in parts and (parts or not pictures):
        raise UserError(f"{source.path}: holds no {SPLITS[0]} image, expected some to train on")
    usage: dict[str | None, int] = {None: 0, **{name: SPLITS.index(name) for name in parts}}
    if len(parts) == 2:
        usage[parts[1]] = 2
        source.say("of its two parts, the second is the test")
    hints = [*source.path.absolute().parts[-3:], *source.items[0].entry.path.split("/")[:-1]]
    classes, index, said = resolve_classes({item.name for item, _ in pictures}, hints, table)
    if not 1 < len(classes) <= MAX_CLASSES:
        raise UserError(f"{source.path}: {len(classes)} classes; expected 2 to {MAX_CLASSES}")
    if said:
        source.say(said)
    if not table:

        def place(picture: tuple[Item, np.ndarray]) -> tuple:
            item = picture[0]
            return usage[item.split], item.entry.name, index[item.name], item.entry.path

        pictures.sort(key=place)
    return Arrays(
        np.stack([image for _, image in pictures]),
        np.array([index[item.name] for item, _ in pictures], np.uint8),
        np.array([usage[item.split] for item, _ in pictures], np.uint8),
        np.array(classes),
        np.array(source.notes, str),
    )


# --- splits


def _draw_splits(arrays: Arrays, missing: list[int]) -> np.ndarray:
    usage, generator = arrays.usage.copy(), np.random.default_rng(0)
    for label in range(len(arrays.classes)):
        rows = generator.permutation(np.flatnonzero((usage == 0) & (arrays.labels == label)))
        # At least one image where that leaves one for training.
        share = max(len(rows) // 10, int(len(rows) > len(missing)))
        for index in missing:
            usage[rows[:share]], rows = index, rows[share:]
    return usage


def _split(arrays: Arrays) -> dict[str, Split]:
    images, labels = torch.from_numpy(arrays.images), torch.from_numpy(arrays.labels)
    whole, splits = Split(images.unsqueeze(1), labels.long()), {}
    # Splits that are contiguous, as they mostly are, become views, without a copy.
    contiguous = bool((np.diff(arrays.usage.astype(np.int8)) >= 0).all())
    for index, name in enumerate(SPLITS):
        rows = np.flatnonzero(arrays.usage == index)
        view = contiguous and len(rows)
        splits[name] = whole.take(slice(rows[0], rows[-1] + 1) if view else torch.from_numpy(rows))
    return splits
