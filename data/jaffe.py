"""JAFFE: finding it under `--data`, and its 213 faces framed as in FER2013."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from PIL import Image

from auto_fernet.pictures import FRAME, Box, check_size, frame
from data.reading.layouts import class_of
from data.reading.sources import Entry, Item, SetKind, Sets, class_folders, open_source
from data.synthetic.cross import draw_jaffe
from data.types import CLASSES, JAFFE_CODES, Faces, count_differences, stack_faces
from runtime.errors import UserError

# Images per class, in the order of CLASSES.
COUNTS = (30, 29, 32, 31, 31, 30, 30)
# Left, top, right, bottom, in pixels of a frame of FRAME x FRAME: FER2013's framing.
BOX: Box = (56, 76, 204, 224)
EXAMPLE = "KA.AN1.39.tiff"
FLAT = "."  # the class folder of images in none
SMALLEST = 200  # pixels a side of a frame; smaller images are cropped already


def load_jaffe(path: str | Path, crop: Box | None = BOX) -> Faces:
    """Load JAFFE from the value of `--data`: the set itself, a folder with it, or "synthetic".

    The set is a folder or an archive. Labels in the order of CLASSES. `crop` is the part of the
    frame that is resized to 48x48, in pixels of a 256x256 frame and scaled for other sizes, or None
    for the whole frame. Images below SMALLEST, and others than frames in class folders, are cropped
    already and taken whole. A sequence, the takes of one person's expression, is `KA.AN`. What was
    decided, and counts other than COUNTS, are logged. Raises UserError when no set is found or it
    is malformed.
    """
    if str(path) == "synthetic":
        drawn = draw_jaffe()
        images = [frame(Image.fromarray(pixels), crop) for pixels in drawn.images[:, 0].numpy()]
        return stack_faces(
            images, drawn.labels.tolist(), drawn.names, drawn.subjects, drawn.sequences
        )
    with open_source(path, Jaffe()) as source:
        # Names first: a folder of something else is refused before anything is decoded.
        people = {item.entry.path: _subject_and_label(item) for item in source.items}
        framed = []

        def box_of(item: Item, image: Image.Image) -> Box | None:
            if item.name == FLAT:
                whole = min(image.size) >= SMALLEST
            else:
                whole = image.size == (FRAME, FRAME) and people[item.entry.path][0] != ""
            if not whole or not crop:
                return None
            check_size(image, image.width == image.height, ", not square")
            framed.append(item)
            return crop

        images = [image for _, image in source.read(box_of)]
        if crop and len(framed) < len(images):
            source.say(
                f"{len(images) - len(framed)} images are cropped already and taken whole: below "
                f"{SMALLEST}x{SMALLEST}, or in class folders and no frames of {FRAME}x{FRAME}"
            )
        source.say_left_out()
    names = [item.entry.name for item in source.items]
    subjects, labels = map(list, zip(*(people[i.entry.path] for i in source.items), strict=True))
    # Of an unknown subject each image is a sequence of its own; a name may be in several folders.
    sequences = [
        f"{subject}.{JAFFE_CODES[label]}" if subject else f"{item.name}/{item.entry.name}"
        for item, subject, label in zip(source.items, subjects, labels, strict=True)
    ]
    faces = stack_faces(images, labels, names, subjects, sequences)
    source.say_differences(count_differences(faces.labels, CLASSES, COUNTS), "JAFFE")
    source.log()
    return faces


class Jaffe(SetKind):
    """JAFFE: images named as its own, or in a folder of its name, flat or in class folders."""

    names = ("jaffe", "jaffedbase")
    start = "jaffe"
    missing = (
        f"no JAFFE there; expected a folder jaffe*, or an archive, with images such as {EXAMPLE}, "
        f"or with cropped images in folders named {', '.join(CLASSES)}: get it from Zenodo "
        '("The Japanese Female Facial Expression (JAFFE) Dataset"), put it into data/ or name its '
        "path with --data; --data synthetic needs no download"
    )

    def sets(self, entries: list[Entry]) -> Sets:
        sets = {}
        for root, items in class_folders(entries).items():
            named = not root or root.rpartition("/")[2].lower().startswith("jaffe")
            if any(class_of(i.name) in CLASSES and (named or _parse(i.entry.name)) for i in items):
                sets[root] = items
        flat = defaultdict(list)
        for entry in filter(Entry.is_image, entries):
            folder = entry.path.rpartition("/")[0]
            last = folder.rpartition("/")[2].lower()
            named = not last or last.startswith("jaffe") or _parse(entry.name) is not None
            if named and not class_of(last):
                flat[folder].append(Item(entry, None, FLAT))
        # Pictures beside a set are none of it.
        if len(flat) + len(sets) > 1 and not any(_parse(i.entry.name) for i in flat.get("", [])):
            flat.pop("", None)
        return {**sets, **flat}


def _subject_and_label(item: Item) -> tuple[str, int]:
    """What the names of an image and its class folder say; the subject is "" if unknown."""
    entry, folder = item.entry, class_of(item.name)
    parsed = _parse(entry.name)
    if item.name == FLAT:
        if parsed is None:
            raise UserError(
                f"{entry.where}: file name {entry.name!r}, expected one such as {EXAMPLE} "
                f"(subject, expression of {' '.join(JAFFE_CODES)} and take, number)"
            )
        return parsed
    if folder not in CLASSES:
        expected = ", ".join(CLASSES)
        raise UserError(f"{entry.where}: class folder {item.name!r}, expected one of {expected}")
    subject, label = parsed or ("", CLASSES.index(folder))
    if CLASSES[label] != folder:
        raise UserError(
            f"{entry.where}: expression {JAFFE_CODES[label]} in the folder {item.name}, "
            "expected both alike"
        )
    return subject, label


def _parse(file: str) -> tuple[str, int] | None:
    """The subject and label of a file name: `KA` and 0 of `KA.AN1.39.tiff`."""
    parts = re.fullmatch(
        rf"([A-Z]{{2}})[._-]({'|'.join(JAFFE_CODES)})[0-9][._-][0-9]+\s*\.[A-Z]+", file.upper()
    )
    return (parts[1], JAFFE_CODES.index(parts[2])) if parts else None
