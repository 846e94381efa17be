"""CK+48: finding it under `--data`, and its 981 images with subject and sequence."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data.layouts import class_of
from data.sources import Entry, Item, Sets, Sought, class_folders, find_source, open_source
from data.synthetic_cross import draw_ck48
from data.types import CK_CLASSES, Faces, Row, gather
from runtime.errors import UserError

# Images per class, in the order of CK_CLASSES, which is not that of the folders.
COUNTS = (135, 177, 75, 207, 84, 249, 54)
FOLDER = re.compile(r"ck(\+|plus)?(48)?", re.I)
FILE = re.compile(r"((S[0-9]{3})_[0-9]{3})_[0-9]{8}\.png")
EXAMPLE = "S010_004_00000017.png"
# Labels by what `class_of` makes of the names of CK_CLASSES and of their synonyms.
_LABELS: dict[str | None, int] = {class_of(name): label for label, name in enumerate(CK_CLASSES)}


def load_ck48(path: str | Path) -> Faces:
    """Load CK+48 from the value of `--data`: the set itself, a folder with it, or "synthetic".

    The set is a folder or an archive. Labels in the order of CK_CLASSES; a sequence is `S010_004`,
    subject and number. Files that are left out, and counts other than COUNTS, are logged. Raises
    UserError when no set is found, it is malformed, or one file name is in two classes.
    """
    if str(path) == "synthetic":
        drawn = draw_ck48()
        parts = zip(drawn.labels.tolist(), drawn.names, drawn.images.numpy(), strict=True)
        return gather([_row(name, label, image[0], name) for label, name, image in parts])
    with open_source(find_source(path, SOUGHT)) as source:
        items = [item for item in source.choose(SOUGHT) if class_of(item.name) in _LABELS]
        _check(items, source.path)
        rows = [
            _row(item.entry.name, _LABELS[class_of(item.name)], image, item.entry.where)
            for item, image in source.read(items)
        ]
        source.say_left_out(items)
    return source.log_faces(gather(rows), CK_CLASSES, COUNTS, "CK+48")


def _sets(entries: list[Entry]) -> Sets:
    def fits(root: str, items: list[Item]) -> bool:
        named = FOLDER.fullmatch(root.rpartition("/")[2]) is not None
        named |= not root or any(FILE.fullmatch(item.entry.name) for item in items)
        return named and any(class_of(item.name) in _LABELS for item in items)

    return {root: i for root, i in class_folders(entries).items() if fits(root, i)}


SOUGHT = Sought(
    _sets,
    ("ckplus48", "ckplus", "ck48", "ck"),
    "ck",
    "no CK+48 there; expected a folder CK+48, or an archive, with a folder of images for each of "
    f'{", ".join(CK_CLASSES)}: get it from Kaggle ("CKPLUS"), put it into data/ or name its path '
    "with --data; --data synthetic needs no download",
)


def _check(items: list[Item], source: Path) -> None:
    """Raise UserError for names and classes other than the set's, before anything is decoded."""
    known: dict[str, int] = {}
    for entry, _, name in items:
        _sequence(entry.name, entry.where)
        label = _LABELS[class_of(name)]
        if (other := known.setdefault(entry.name, label)) != label:
            raise UserError(
                f"{source}: {entry.name} in the folders {CK_CLASSES[other]} and "
                f"{CK_CLASSES[label]}, expected an image in one"
            )
    for label, name in enumerate(CK_CLASSES):
        if label not in known.values():
            raise UserError(
                f"{source}: no image in a class folder {name}; expected some such as {EXAMPLE} in "
                f"each of {', '.join(CK_CLASSES)}"
            )


def _row(name: str, label: int, image: np.ndarray, where: str) -> Row:
    subject, sequence = _sequence(name, where)
    return Row(label, name, subject, sequence, image)


def _sequence(name: str, where: str) -> tuple[str, str]:
    parts = FILE.fullmatch(name)
    if parts is None:
        raise UserError(
            f"{where}: file name {name!r}, expected one such as {EXAMPLE} "
            "(subject, sequence, frame)"
        )
    return parts[2], parts[1]
