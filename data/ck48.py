"""CK+48: finding it under `--data`, and its 981 images with subject and sequence."""

from __future__ import annotations

import re
from pathlib import Path

from data.reading.layouts import class_of
from data.reading.sources import Entry, SetKind, Sets, Source, class_folders, open_source
from data.synthetic.cross import draw_ck48
from data.types import CK_CLASSES, Faces, count_differences, stack_faces
from runtime.errors import UserError

# Images per class, in the order of CK_CLASSES, which is not that of the folders.
COUNTS = (135, 177, 75, 207, 84, 249, 54)
FOLDER = re.compile(r"ck(\+|plus)?(48)?", re.I)
FILE = re.compile(r"S[0-9]{3}_[0-9]{3}_[0-9]{8}\.png")
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
        images = list(drawn.images[:, 0].numpy())
        return stack_faces(
            images, drawn.labels.tolist(), drawn.names, drawn.subjects, drawn.sequences
        )
    with open_source(path, CK48()) as source:
        labels = _labels(source)
        images = [image for _, image in source.read()]
        source.say_left_out()
    names = [item.entry.name for item in source.items]
    faces = stack_faces(
        images, labels, names, [name[:4] for name in names], [name[:8] for name in names]
    )
    source.say_differences(count_differences(faces.labels, CK_CLASSES, COUNTS), "CK+48")
    source.log()
    return faces


class CK48(SetKind):
    """CK+48: class folders of its name or with files named as its own."""

    names = ("ckplus48", "ckplus", "ck48", "ck")
    start = "ck"
    missing = (
        "no CK+48 there; expected a folder CK+48, or an archive, with a folder of images for each "
        f'of {", ".join(CK_CLASSES)}: get it from Kaggle ("CKPLUS"), put it into data/ or name its '
        "path with --data; --data synthetic needs no download"
    )

    def sets(self, entries: list[Entry]) -> Sets:
        sets = {}
        for root, images in class_folders(entries).items():
            named = not root or FOLDER.fullmatch(root.rpartition("/")[2])
            # Images in other folders, such as an eighth class, are none of the set.
            items = [item for item in images if class_of(item.name) in _LABELS]
            if items and (named or any(FILE.fullmatch(item.entry.name) for item in images)):
                sets[root] = items
        return sets


def _labels(source: Source) -> list[int]:
    """The labels of the images; UserError for names and classes other than the set's."""
    known: dict[str, int] = {}
    labels = [_LABELS[class_of(item.name)] for item in source.items]
    for item, label in zip(source.items, labels, strict=True):
        name = item.entry.name
        if not FILE.fullmatch(name):
            raise UserError(
                f"{item.entry.where}: file name {name!r}, expected one such as {EXAMPLE} "
                "(subject, sequence, frame)"
            )
        if (other := known.setdefault(name, label)) != label:
            raise UserError(
                f"{source.path}: {name} in the folders {CK_CLASSES[other]} and "
                f"{CK_CLASSES[label]}, expected an image in one"
            )
    for label, name in enumerate(CK_CLASSES):
        if label not in labels:
            raise UserError(
                f"{source.path}: no image in a class folder {name}; expected some such as "
                f"{EXAMPLE} in each of {', '.join(CK_CLASSES)}"
            )
    return labels
