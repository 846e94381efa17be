"""Writing the synthetic sets in the forms of the real ones, for the same readers.

The same set gives the same bytes: archives contain no dates and no owners. (Compression may differ
from one zlib to another.)
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

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
    _write_files(folder, _folder_files(splits))


def write_archive(splits: dict[str, Split], path: Path | str) -> None:
    """Write the folder form as the archive .zip, .tar, .tar.gz or .tar.xz that `path` ends in.

    The top folder inside is `fer2013`.
    """

    def write(file: BinaryIO) -> None:
        if str(path).endswith(".zip"):
            _pack_zip(file, _folder_files(splits))
        else:
            with compressed(file, "".join(Path(path).suffixes[-2:])) as packed:
                _pack_tar(packed, _folder_files(splits))

    atomic_write(path, write)


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


def _folder_files(splits: dict[str, Split]) -> Iterator[tuple[str, bytes]]:
    """Path and content of every image of the folder form, in the order of the rows."""
    for name, split in splits.items():
        part = "train" if name == "Training" else "test"
        pictures = zip(split.labels.tolist(), split.images.numpy(), strict=True)
        for number, (label, image) in enumerate(pictures, FIRST_NUMBER):
            path = f"{part}/{CLASSES[label]}/{name}_{number}.png"
            yield path, _encoded(image[0], "PNG")


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


def compressed(file: BinaryIO, form: str) -> AbstractContextManager[Any]:
    """`file` for the bytes of a .tar, compressed when `form` says so."""
    if form == ".tar.gz":
        return gzip.GzipFile("", "wb", fileobj=file, mtime=0)
    if form == ".tar.xz":
        return lzma.LZMAFile(file, "wb", preset=1)
    return nullcontext(file)


def _pack_zip(file: BinaryIO, files: Iterable[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            member = zipfile.ZipInfo(f"fer2013/{name}")  # dated 1980, its default
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)


def _pack_tar(file: BinaryIO, files: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files:
            member = tarfile.TarInfo(f"fer2013/{name}")  # dated 1970, owned by 0, its defaults
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
