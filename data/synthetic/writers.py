"""Writing the synthetic sets in the forms of the real ones, for the same readers."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from data.synthetic.fer2013 import VOTE_COLUMNS
from data.types import CK_CLASSES, CLASSES, Faces, Split
from runtime.errors import UserError
from runtime.files import atomic_write, write_text

# JAFFE keeps 23 of its 213 files as palette images: about one in nine.
PALETTE_EVERY = 9
# First number in the file names of the folder form; names sort in the order of the rows.
FIRST_NUMBER = 10_000_000
ARCHIVES = {".zip": "zip", ".tar": "tar", ".gz": "gztar", ".xz": "xztar"}  # names of shutil


def write_csv(splits: dict[str, Split], path: Path | str, kaggle: bool = False) -> None:
    """Write `fer2013.csv`, or with `kaggle` the challenge's `icml_face_data.csv`.

    Rows in the order of SPLITS, the given labels as `emotion`. Raises UserError when `path`
    cannot be written, as all writers here.
    """
    words = [str(value) for value in range(256)]

    def write(file: BinaryIO) -> None:
        file.write(b"emotion, Usage, pixels\n" if kaggle else b"emotion,pixels,Usage\n")
        for name, split in splits.items():
            for label, image in zip(split.labels.tolist(), split.images, strict=True):
                pixels = " ".join([words[value] for value in image.flatten().tolist()])
                fields = (name, pixels) if kaggle else (pixels, name)
                file.write(f"{label},{','.join(fields)}\n".encode())

    atomic_write(path, write)


def write_folder(splits: dict[str, Split], folder: Path | str) -> None:
    """Write `train/<class>/Training_<number>.png` and `test/<class>/PublicTest_...` below `folder`.

    Raises UserError when it already holds anything: two sets in one folder would be read as one.
    """
    files = []
    for name, split in splits.items():
        part = "train" if name == "Training" else "test"
        pictures = zip(split.labels.tolist(), split.images.numpy(), strict=True)
        for number, (label, image) in enumerate(pictures, FIRST_NUMBER):
            path = f"{part}/{CLASSES[label]}/{name}_{number}.png"
            files.append((path, _encoded(image[0], "PNG")))
    _write_files(folder, files)


def write_archive(splits: dict[str, Split], path: Path | str) -> None:
    """Write the folder form as the archive .zip, .tar, .tar.gz or .tar.xz that `path` ends in.

    The top folder inside is `fer2013`.
    """
    with tempfile.TemporaryDirectory() as place:
        write_folder(splits, Path(place) / "fer2013")
        form = ARCHIVES[Path(path).suffix]
        packed = Path(shutil.make_archive(f"{place}/packed", form, place, "fer2013"))
        atomic_write(path, lambda file: file.write(packed.read_bytes()))


def write_votes(votes: dict[str, np.ndarray], path: Path | str) -> None:
    """Write `fer2013new.csv` from int (N, 10) votes of each split, in the order of `write_csv`."""
    lines = [",".join(("Usage", "Image name", *VOTE_COLUMNS))]
    for name, rows in votes.items():
        for row in rows.tolist():
            lines.append(",".join((name, f"fer{len(lines) - 1:07d}.png", *map(str, row))))
    write_text(path, "\n".join(lines) + "\n")


def write_ck48(drawn: Faces, folder: Path | str) -> None:
    """Write `<class>/<subject>_<sequence>_<frame>.png` below `folder`, which must be empty."""
    faces = zip(drawn.images.numpy(), drawn.labels.tolist(), drawn.names, strict=True)
    _write_files(
        folder, ((f"{CK_CLASSES[k]}/{name}", _encoded(image[0], "PNG")) for image, k, name in faces)
    )


def write_jaffe(drawn: Faces, folder: Path | str) -> None:
    """Write `<subject>.<expression><take>.<number>.tiff` into `folder`, which must be empty.

    Gray TIFFs, each PALETTE_EVERY-th of them a palette image of the same grays.
    """
    faces = enumerate(zip(drawn.images.numpy(), drawn.names, strict=True), 1)
    _write_files(
        folder,
        (
            (name, _encoded(image[0], "TIFF", palette=number % PALETTE_EVERY == 0))
            for number, (image, name) in faces
        ),
    )


def _encoded(pixels: np.ndarray, form: str, palette: bool = False) -> bytes:
    """An image file of uint8 (H, W) grays; a palette image stores them by number, reversed."""
    image = Image.fromarray(255 - pixels if palette else pixels)
    if palette:
        image.putpalette([255 - index // 3 for index in range(3 * 256)])
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def _write_files(folder: Path | str, files: Iterable[tuple[str, bytes]]) -> None:
    """Write all files below a new or empty `folder`."""
    folder = Path(folder)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty; expected a new folder to write the set to")
        for name, content in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
