"""CK+48: finding it under `--data`, and its 981 images with who is on them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.faces import Faces, Row, gather, list_folder, one_line, read_image, report_counts
from data.images import decode_image
from utils import UserError

__all__ = ["CK_CLASSES", "COUNTS", "find_ck48", "load_ck48"]

# The order of the labels, which is not that of the folders.
CK_CLASSES = ("anger", "disgust", "fear", "happy", "sadness", "surprise", "contempt")
# Images per class, in the order of CK_CLASSES.
COUNTS = (135, 177, 75, 207, 84, 249, 54)
FOLDER = "CK+48"
FOLDER_NAMES = r"ck(\+|plus)?(48)?"  # in any case
EXAMPLE = "S010_004_00000017.png"


def load_ck48(path: str | Path, *, report: Callable[[str], None] | None = None) -> Faces:
    """Load CK+48 from what `--data` names: the set itself, a folder with it, or "synthetic".

    Labels in the order of CK_CLASSES; a sequence is `S010_004`, subject and number, of which the
    set has three frames. `report` gets a line when counts differ from COUNTS. Raises UserError
    when no set is found, it is malformed, or one file name is in two classes.
    """
    report = report or (lambda _: None)
    if str(path) == "synthetic":
        from data.synthetic_cross import draw_ck48

        drawn = draw_ck48()
        parts = zip(drawn.labels.tolist(), drawn.names, drawn.images.numpy(), strict=True)
        return gather([_row(name, label, image[0], name) for label, name, image in parts])
    source = find_ck48(path)
    rows = [
        row for label, name in enumerate(CK_CLASSES) for row in _read_class(source, name, label)
    ]
    known: dict[str, int] = {}
    for row in rows:
        if (other := known.setdefault(row.name, row.label)) != row.label:
            raise UserError(
                f"{one_line(source)}: {row.name} in the folders {CK_CLASSES[other]} and "
                f"{CK_CLASSES[row.label]}, expected an image in one"
            )
    faces = gather(rows)
    what = f"{one_line(source)}: counts differ from CK+48's"
    report_counts(faces.labels, classes=CK_CLASSES, expected=COUNTS, what=what, report=report)
    return faces


def find_ck48(path: str | Path) -> Path:
    """Return the folder of class folders that `path` is or holds; UserError when there is none."""
    path = Path(path)
    found = _look_in(path)
    if found is not None:
        return found
    raise UserError(
        f"--data {one_line(path)}: no CK+48 there; expected a folder {FOLDER} with a folder of "
        f"images for each of {', '.join(CK_CLASSES)}: get it from Kaggle "
        '("CKPLUS"), unpack it into data/ or name its path with --data; '
        "--data synthetic needs no download"
    )


def _look_in(folder: Path) -> Path | None:
    if not os.path.isdir(folder):
        return None
    _, folders = list_folder(folder)
    # By name first: what else lies beside the set does not matter then.
    named = (_look_in(inner) for inner in folders if _is_named(inner))
    own = folder if any(inner.name in CK_CLASSES for inner in folders) else None
    return next((found for found in named if found), own)


def _is_named(folder: Path) -> bool:
    return re.fullmatch(FOLDER_NAMES, folder.name, re.IGNORECASE) is not None


def _read_class(source: Path, name: str, label: int) -> list[Row]:
    folder = source / name
    if not os.path.isdir(folder):
        raise UserError(
            f"{one_line(source)}: no class folder {name}; expected {', '.join(CK_CLASSES)}"
        )
    images, _ = list_folder(folder)
    if not images:
        raise UserError(f"{one_line(folder)}: holds no image; expected some such as {EXAMPLE}")
    # Names first: a folder that is something else is refused before anything is decoded.
    for path in images:
        _sequence(path.name, one_line(path))
    return [
        _row(path.name, label, read_image(path, decode_image), one_line(path)) for path in images
    ]


def _row(name: str, label: int, image: np.ndarray, where: str) -> Row:
    subject, sequence = _sequence(name, where)
    return Row(label, name, subject, sequence, image)


def _sequence(name: str, where: str) -> tuple[str, str]:
    parts = re.fullmatch(r"((S[0-9]{3})_[0-9]{3})_[0-9]{8}\.png", name)
    if parts is None:
        raise UserError(
            f"{where}: file name {name!r}, expected one such as {EXAMPLE} "
            "(subject, sequence, frame)"
        )
    return parts[2], parts[1]
