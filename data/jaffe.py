"""JAFFE: finding it under `--data`, and its 213 faces framed as FER2013 frames them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from data.faces import Faces, Row, gather, list_folder, one_line, read_image, report_counts
from data.images import SIDE, open_image
from data.readers import CLASSES
from utils import UserError

__all__ = ["BOX", "COUNTS", "FRAME", "Box", "check_box", "find_jaffe", "frame", "load_jaffe"]

Box = tuple[int, int, int, int]

# The expressions as file names have them, in the order of FER2013's classes.
CODES = ("AN", "DI", "FE", "HA", "SA", "SU", "NE")
# Images per class, in the same order.
COUNTS = (30, 29, 32, 31, 31, 30, 30)
# Left, top, right, bottom, in pixels of a frame of FRAME x FRAME: FER2013's framing.
BOX: Box = (56, 76, 204, 224)
FRAME = 256
EXAMPLE = "KA.AN1.39.tiff"

# What class folders of cropped images are called besides the names of CLASSES.
_VARIANTS = {"anger": "angry", "happiness": "happy", "sadness": "sad"}
FOLDER_LABELS = {name: CLASSES.index(_VARIANTS.get(name, name)) for name in (*CLASSES, *_VARIANTS)}
FORMATS = ("TIFF", "PNG", "JPEG", "BMP", "GIF")
MAX_IMAGE_BYTES = 1 << 24
MAX_SIDE = 4096


class Name(NamedTuple):
    """What the name of a file says: `KA`, label 0, take 1."""

    subject: str
    label: int
    take: int


def load_jaffe(
    path: str | Path, *, crop: Box | None = BOX, report: Callable[[str], None] | None = None
) -> Faces:
    """Load JAFFE from what `--data` names: the set itself, a folder with it, or "synthetic".

    Labels in the order of FER2013's classes. `crop` is the part of the frame that is resized to
    48x48, in pixels of a 256x256 frame and scaled for other sizes, or None for the whole frame.
    Images in class folders are cropped already and always taken whole, whatever their shape. A
    sequence, the takes of one person's expression, is `KA.AN`. `report` gets a line when counts
    differ from COUNTS, and for class folders. Raises UserError when no set is found, it is
    malformed, the box lies outside the frame, or is another than BOX for class folders.
    """
    report = report or (lambda _: None)
    check_box(crop)
    if str(path) == "synthetic":
        return _draw(crop)
    source = find_jaffe(path)
    images, folders = list_folder(source)
    if images:
        faces = gather(_read_frames(images, crop))
    else:
        if crop not in (BOX, None):
            raise UserError(
                f"--crop {','.join(map(str, crop))}: {one_line(source)} holds cropped images in "
                "class folders, expected none, as these are taken whole"
            )
        report(f"{one_line(source)}: cropped images in class folders, taken whole")
        faces = gather(_read_class_folders(folders))
    what = f"{one_line(source)}: counts differ from JAFFE's"
    report_counts(faces.labels, classes=CLASSES, expected=COUNTS, what=what, report=report)
    return faces


def check_box(crop: Box | None) -> None:
    """Raise UserError when the box of --crop does not lie within the frame."""
    if crop is None:
        return
    left, top, right, bottom = crop
    if not (0 <= left < right <= FRAME and 0 <= top < bottom <= FRAME):
        raise UserError(
            f"--crop {','.join(map(str, crop))}: expected left < right and top < bottom "
            f"within 0 to {FRAME}"
        )


def find_jaffe(path: str | Path) -> Path:
    """Return the folder of images or of class folders that `path` is or holds; else UserError."""
    path = Path(path)
    found = _look_in(path)
    if found is None:
        raise UserError(
            f"--data {one_line(path)}: no JAFFE there; expected a folder jaffe* with images such "
            f"as {EXAMPLE}, or with cropped images in folders named {', '.join(CLASSES)}: get it "
            'from Zenodo ("The Japanese Female Facial Expression (JAFFE) Dataset"), unpack it into '
            "data/ or name its path with --data; --data synthetic needs no download"
        )
    return found


def _look_in(folder: Path) -> Path | None:
    if not os.path.isdir(folder):
        return None
    images, folders = list_folder(folder)
    # By name first: what else lies beside the set does not matter then.
    named = (_look_in(inner) for inner in folders if inner.name.lower().startswith("jaffe"))
    own = folder if images or any(_folder_label(inner) is not None for inner in folders) else None
    return next((found for found in named if found), own)


def _draw(crop: Box | None) -> Faces:
    from data.synthetic_cross import draw_jaffe

    drawn = draw_jaffe()
    rows = []
    for pixels, name in zip(drawn.images.numpy(), drawn.names, strict=True):
        rows.append(_row(name, _parse(name), frame(Image.fromarray(pixels[0]), crop)))
    return gather(rows)


# ---------------------------------------------------------------- the two forms


def _read_frames(paths: list[Path], crop: Box | None) -> list[Row]:
    """The set as distributed: whole frames whose names say everything."""
    # Names first: a folder that is something else is refused before anything is decoded.
    names = [_parse(path.name) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if name is None:
            raise UserError(
                f"{one_line(path)}: file name {path.name!r}, expected one such as {EXAMPLE} "
                f"(subject, expression of {' '.join(CODES)} and take, number)"
            )
    decode = partial(_decode, crop=crop)
    return [
        _row(path.name, name, read_image(path, decode))
        for path, name in zip(paths, names, strict=True)
    ]


def _read_class_folders(folders: list[Path]) -> list[Row]:
    """Cropped images in class folders; their names may say more, and must not say otherwise."""
    rows = []
    for folder in folders:
        label = _folder_label(folder)
        if label is None:
            raise UserError(
                f"{one_line(folder)}: class folder {folder.name!r}, expected one of "
                f"{', '.join(FOLDER_LABELS)}"
            )
        for path in list_folder(folder)[0]:
            name = _parse(path.name)
            if name is not None and name.label != label:
                raise UserError(
                    f"{one_line(path)}: expression {CODES[name.label]} in the folder of "
                    f"{CODES[label]}, expected both alike"
                )
            image = read_image(path, partial(_decode, crop=None))
            # A name that says nothing: nobody known, in a sequence of its own. The same name may
            # stand in several folders.
            row = Row(label, path.name, "", f"{folder.name}/{path.name}", image)
            rows.append(row if name is None else _row(path.name, name, image))
    if not rows:
        raise UserError(
            f"{one_line(folders[0].parent)}: class folders without images, expected some"
        )
    return rows


def _folder_label(folder: Path) -> int | None:
    return FOLDER_LABELS.get(folder.name.lower())


def _parse(file: str) -> Name | None:
    parts = re.fullmatch(
        rf"([A-Z]{{2}})[._-]({'|'.join(CODES)})([0-9])[._-][0-9]+\s*\.[A-Z]+", file.upper()
    )
    return parts and Name(parts[1], CODES.index(parts[2]), int(parts[3]))


def _row(file: str, name: Name, image: np.ndarray) -> Row:
    return Row(name.label, file, name.subject, f"{name.subject}.{CODES[name.label]}", image)


# ---------------------------------------------------------------- one image


def _decode(stream: BinaryIO, size: int, where: str, crop: Box | None) -> np.ndarray:
    """Decode an image of `size` bytes, square where `crop` cuts it, to uint8 (48, 48)."""
    return open_image(
        stream,
        size,
        where,
        max_bytes=MAX_IMAGE_BYTES,
        formats=FORMATS,
        expected=f"one of {', '.join(FORMATS)}",
        fits=lambda width, height: max(width, height) <= MAX_SIDE and (not crop or width == height),
        expected_size=f"{'a square of ' if crop else ''}at most {MAX_SIDE} pixels a side",
        convert=partial(frame, crop=crop),
    )


def frame(image: Image.Image, crop: Box | None) -> np.ndarray:
    """The part of an image that `crop` names, all without, as gray uint8 (48, 48)."""
    # Pillow widens the bilinear kernel by the scale when it shrinks, so nothing aliases; the box
    # kernel would average as well, but turns blocky where cropped images are below 48 pixels.
    # Gray first: the numbers of a palette image cannot be averaged.
    gray = image.convert("L")
    if crop is not None:
        # Cut first: with a box of its own, resize would mix in what lies beyond the edges.
        gray = gray.crop(tuple(round(edge * image.width / FRAME) for edge in crop))
    return np.array(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
