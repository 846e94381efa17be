"""JAFFE: finding it under `--data`, and its 213 faces framed as in FER2013."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from auto_fernet.pictures import FRAME, Box, check_size, frame
from data.reading.layouts import class_of
from data.reading.sources import Entry, Item, SetKind, Sets, class_folders, open_source
from data.synthetic.cross import draw_jaffe
from data.types import CLASSES, JAFFE_CODES, Faces, Sample, stack_faces
from runtime.errors import UserError

# Images per class, in the order of CLASSES.
COUNTS = (30, 29, 32, 31, 31, 30, 30)
# Left, top, right, bottom, in pixels of a frame of FRAME x FRAME: FER2013's framing.
BOX: Box = (56, 76, 204, 224)
EXAMPLE = "KA.AN1.39.tiff"
FLAT = "."  # the class folder of images in none
SMALLEST = 200  # pixels a side of a frame; smaller images are cropped already


class Name(NamedTuple):
    """The parts of a file name: `KA`, label 0."""

    subject: str
    label: int


def load_jaffe(path: str | Path, crop: Box | None = BOX) -> Faces:
    """Load JAFFE from the value of `--data`: the set itself, a folder with it, or "synthetic".

    The set is a folder or an archive. Labels in the order of CLASSES. `crop` is the part of the
    frame that is resized to 48x48, in pixels of a 256x256 frame and scaled for other sizes, or None
    for the whole frame. Images below SMALLEST, and others than frames in class folders, are cropped
    already and taken whole. A sequence, the takes of one person's expression, is `KA.AN`. What was
    decided, and counts other than COUNTS, are logged. Raises UserError when no set is found, it is
    malformed, or the box is other than BOX and no image is a frame.
    """
    if str(path) == "synthetic":
        drawn = draw_jaffe()
        pictures = (Image.fromarray(pixels[0]) for pixels in drawn.images.numpy())
        named = zip(drawn.names, map(_parse, drawn.names), pictures, strict=True)
        return stack_faces([_sample(file, name, frame(p, crop)) for file, name, p in named if name])
    with open_source(path, Jaffe()) as source:
        # Names first: a folder of something else is refused before anything is decoded.
        names = {item.entry.path: _name(item) for item in source.items}
        framed: list[tuple[int, int]] = []

        def box_of(item: Item, image: Image.Image) -> Box | None:
            if item.name == FLAT:
                whole = min(image.size) >= SMALLEST
            else:
                whole = image.size == (FRAME, FRAME) and names[item.entry.path].subject != ""
            if not whole or not crop:
                return None
            check_size(image, image.width == image.height, ", not square")
            framed.append(image.size)
            return crop

        samples = [
            _sample(item.entry.name, names[item.entry.path], image, item.name)
            for item, image in source.read(box_of)
        ]
        if not framed and crop not in (BOX, None):
            raise UserError(
                f"--crop {','.join(map(str, crop or ()))}: {source.path} holds cropped images, "
                "expected frames, as these are taken whole"
            )
        if crop and len(framed) < len(samples):
            source.say(
                f"{len(samples) - len(framed)} images are cropped already and taken whole: below "
                f"{SMALLEST}x{SMALLEST}, or in class folders and no frames of {FRAME}x{FRAME}"
            )
        if others := sorted({size for size, _ in framed} - {FRAME}):
            source.say(f"images of {others[0]}x{others[0]} are cropped as whole frames")
        source.say_left_out()
    return source.log_faces(stack_faces(samples), CLASSES, COUNTS, "JAFFE")


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


def _name(item: Item) -> Name:
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
    name = parsed or Name("", CLASSES.index(folder))
    if CLASSES[name.label] != folder:
        raise UserError(
            f"{entry.where}: expression {JAFFE_CODES[name.label]} in the folder {item.name}, "
            "expected both alike"
        )
    return name


def _parse(file: str) -> Name | None:
    parts = re.fullmatch(
        rf"([A-Z]{{2}})[._-]({'|'.join(JAFFE_CODES)})[0-9][._-][0-9]+\s*\.[A-Z]+", file.upper()
    )
    return Name(parts[1], JAFFE_CODES.index(parts[2])) if parts else None


def _sample(file: str, name: Name, image: np.ndarray, folder: str = "") -> Sample:
    # Of an unknown subject each image is a sequence of its own. The same name may be in several
    # folders.
    sequence = f"{name.subject}.{JAFFE_CODES[name.label]}" if name.subject else f"{folder}/{file}"
    return Sample(name.label, file, name.subject, sequence, image)
