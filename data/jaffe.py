"""JAFFE: finding it under `--data`, and its 213 faces framed as in FER2013."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.images import check_size, list_folder, normalise, open_image
from data.synthetic_cross import draw_jaffe
from data.types import CLASSES, JAFFE_CODES, SIDE, Faces, Row, count_differences, gather
from utils import LOGGER_NAME, UserError

Box = tuple[int, int, int, int]

# Images per class, in the order of CLASSES.
COUNTS = (30, 29, 32, 31, 31, 30, 30)
# Left, top, right, bottom, in pixels of a frame of FRAME x FRAME: FER2013's framing.
BOX: Box = (56, 76, 204, 224)
FRAME = 256
EXAMPLE = "KA.AN1.39.tiff"

# Names of class folders of cropped images, besides CLASSES.
_VARIANTS = {"anger": "angry", "happiness": "happy", "sadness": "sad"}
FOLDER_LABELS = {name: CLASSES.index(_VARIANTS.get(name, name)) for name in (*CLASSES, *_VARIANTS)}
FORMATS = ("TIFF", "PNG", "JPEG", "BMP", "GIF")
MAX_IMAGE_BYTES = 1 << 24
MAX_SIDE = 4096


class Name(NamedTuple):
    """The parts of a file name: `KA`, label 0."""

    subject: str
    label: int


def load_jaffe(path: str | Path, crop: Box | None = BOX) -> Faces:
    """Load JAFFE from the value of `--data`: the set itself, a folder with it, or "synthetic".

    Labels in the order of CLASSES. `crop` is the part of the frame that is resized to 48x48, in
    pixels of a 256x256 frame and scaled for other sizes, or None for the whole frame. Images in
    class folders are cropped already and taken whole, whatever their shape. A sequence, the takes
    of one person's expression, is `KA.AN`. Class folders, and counts other than COUNTS, are
    logged. Raises UserError when no set is found, it is malformed, the box is outside the frame,
    or is other than BOX for class folders.
    """
    check_box(crop)
    if str(path) == "synthetic":
        drawn = draw_jaffe()
        images = [frame(Image.fromarray(pixels[0]), crop) for pixels in drawn.images.numpy()]
        return gather(
            [
                _row(name, _parse(name), image)
                for name, image in zip(drawn.names, images, strict=True)
            ]
        )
    log = logging.getLogger(LOGGER_NAME).info
    source = find_jaffe(path)
    paths, folders = list_folder(source)
    if paths:
        faces = gather(_read_frames(paths, crop))
    else:
        if crop not in (BOX, None):
            raise UserError(
                f"--crop {','.join(map(str, crop or ()))}: {source} holds cropped images in "
                "class folders, expected none, as these are taken whole"
            )
        log(f"{source}: cropped images in class folders, taken whole")
        faces = gather(_read_class_folders(source, folders))
    if differences := count_differences(faces.labels, CLASSES, COUNTS):
        log(f"{source}: counts differ from JAFFE's: {', '.join(differences)}")
    return faces


def check_box(crop: Box | None) -> None:
    """Raise UserError when the box of --crop is not within the frame."""
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
    found = _look_in(Path(path))
    if found is None:
        raise UserError(
            f"--data {path}: no JAFFE there; expected a folder jaffe* with images such "
            f"as {EXAMPLE}, or with cropped images in folders named {', '.join(CLASSES)}: get it "
            'from Zenodo ("The Japanese Female Facial Expression (JAFFE) Dataset"), unpack it into '
            "data/ or name its path with --data; --data synthetic needs no download"
        )
    return found


def _look_in(folder: Path) -> Path | None:
    if not os.path.isdir(folder):
        return None
    images, folders = list_folder(folder)
    # By name first, so that other folders beside the set do not matter.
    named = (_look_in(inner) for inner in folders if inner.name.lower().startswith("jaffe"))
    own = folder if images or any(f.name.lower() in FOLDER_LABELS for f in folders) else None
    return next((found for found in named if found), own)


def _read_frames(paths: list[Path], crop: Box | None) -> list[Row]:
    """The set as distributed: whole frames, with subject and expression in the names."""
    # Names first: a folder of something else is refused before anything is decoded.
    names = [_parse(path.name) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if name is None:
            raise UserError(
                f"{path}: file name {path.name!r}, expected one such as {EXAMPLE} "
                f"(subject, expression of {' '.join(JAFFE_CODES)} and take, number)"
            )
    return [
        _row(path.name, name, _decode(path, crop)) for path, name in zip(paths, names, strict=True)
    ]


def _read_class_folders(source: Path, folders: list[Path]) -> list[Row]:
    """Cropped images in class folders; their names may give a subject."""
    rows = []
    for folder in folders:
        label = FOLDER_LABELS.get(folder.name.lower())
        if label is None:
            raise UserError(
                f"{folder}: class folder {folder.name!r}, expected one of "
                f"{', '.join(FOLDER_LABELS)}"
            )
        for path in list_folder(folder)[0]:
            name = _parse(path.name)
            if name is not None and name.label != label:
                raise UserError(
                    f"{path}: expression {JAFFE_CODES[name.label]} in the folder of "
                    f"{JAFFE_CODES[label]}, expected both alike"
                )
            image = _decode(path, None)
            # Of an unknown subject each image is a sequence of its own. The same name may be in
            # several folders.
            row = Row(label, path.name, "", f"{folder.name}/{path.name}", image)
            rows.append(row if name is None else _row(path.name, name, image))
    if not rows:
        raise UserError(f"{source}: class folders without images, expected some")
    return rows


def _parse(file: str) -> Name | None:
    parts = re.fullmatch(
        rf"([A-Z]{{2}})[._-]({'|'.join(JAFFE_CODES)})[0-9][._-][0-9]+\s*\.[A-Z]+", file.upper()
    )
    return Name(parts[1], JAFFE_CODES.index(parts[2])) if parts else None


def _row(file: str, name: Name | None, image: np.ndarray) -> Row:
    assert name is not None  # checked before the image was decoded
    return Row(name.label, file, name.subject, f"{name.subject}.{JAFFE_CODES[name.label]}", image)


def _decode(path: Path, crop: Box | None) -> np.ndarray:
    """Decode an image, which must be square for `crop`, to uint8 (48, 48)."""
    square = "a square of " if crop else ""
    expected = f"{square}at most {MAX_SIDE} pixels a side, one of {', '.join(FORMATS)}"
    with open_image(path, str(path), FORMATS, MAX_IMAGE_BYTES, expected) as image:
        width, height = image.size
        check_size(image, max(width, height) <= MAX_SIDE and (not crop or width == height))
        return frame(normalise(image), crop)


def frame(image: Image.Image, crop: Box | None) -> np.ndarray:
    """The part `crop` of an image, or all of it, as gray uint8 (48, 48)."""
    # Pillow widens the bilinear kernel when it shrinks, so nothing aliases; the box kernel would
    # average as well, but turns blocky where cropped images are below 48 pixels.
    # Gray first: the numbers of a palette image cannot be averaged.
    gray = image.convert("L")
    if crop is not None:
        # Cut first: resize with a box would mix in pixels from outside it.
        left, top, right, bottom = (round(edge * image.width / FRAME) for edge in crop)
        gray = gray.crop((left, top, right, bottom))
    return np.array(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
