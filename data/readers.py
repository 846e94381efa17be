"""FER2013 in the forms users have it: a table, a folder of images, or an archive of either.

Every form gives the same three arrays. Archives are read without unpacking them to disk.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np

from data.bounded import Unpacked, decompressed, quoted, read_table
from data.images import decode_image
from data.types import CLASSES, SIDE, SPLITS
from utils import LOGGER_NAME, UserError, reading

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")
TABLE_NAMES = ("fer2013.csv", "icml_face_data.csv")
FOLDERS = ("train", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
COLUMNS = ("emotion", "pixels", "Usage")
MAX_TABLE_BYTES = 1 << 30
MAX_MEMBERS = 200_000


class Arrays(NamedTuple):
    """A whole set: images uint8 (N, 48, 48), labels uint8 (N,) in 0..6, usage uint8 (N,) in 0..2.

    The numbers index CLASSES and SPLITS. A table keeps its row order; images from a folder are
    sorted by split and file name, whose numbers are not sorted by class.
    """

    images: np.ndarray
    labels: np.ndarray
    usage: np.ndarray


class Place(NamedTuple):
    """Where an image belongs; places sort by split and file name, which mixes the classes."""

    usage: int
    file: str
    label: int
    folder: str


class Entry(NamedTuple):
    """A regular file in an archive: its path inside, size in bytes, and how to open it."""

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes] | None]


def read_set(source: Path) -> Arrays:
    """Read the set at `source`: a `.csv`, an archive, or a folder that holds train/ or test/.

    Raises UserError, naming file and line or member, for anything malformed and for a set in which
    one of the three splits has no image.
    """
    if source.is_dir():
        arrays = _read_folder(source)
    elif source.name.lower().endswith(ARCHIVE_SUFFIXES):
        arrays = _read_archive(source)
    elif source.suffix.lower() == ".csv":
        with reading(source), source.open("rb") as stream:
            arrays = _read_table(stream, source.stat().st_size, str(source))
    else:
        raise UserError(
            f"{source}: not a form of FER2013; expected a .csv, a folder with train/ and test/, "
            f"or one of {' '.join(ARCHIVE_SUFFIXES)}"
        )
    for index, split in enumerate(SPLITS):
        if not (arrays.usage == index).any():
            raise UserError(
                f"{source}: holds no {split} image, expected images of {', '.join(SPLITS)}"
            )
    return arrays


# --- tables


def _read_table(stream: BinaryIO, size: int, where: str) -> Arrays:
    images, labels, usages = [], [], []
    parts = read_table(stream, where, COLUMNS, size=size, max_size=MAX_TABLE_BYTES)
    with warnings.catch_warnings():
        # Older numpy only warns of text after the last number it could read.
        warnings.simplefilter("error", DeprecationWarning)
        for part in parts:
            rows = zip(part.index + 2, *(part[name] for name in COLUMNS), strict=True)
            for line, emotion, pixels, usage in rows:
                if not (emotion or pixels or usage):
                    continue
                at = f"{where}, line {line}"
                if not re.fullmatch("[0-6]", emotion.strip()):
                    raise UserError(f"{at}: emotion {quoted(emotion)}, expected a class of 0 to 6")
                if usage.strip() not in SPLITS:
                    raise UserError(f"{at}: Usage {quoted(usage)}, expected {', '.join(SPLITS)}")
                images.append(_pixels(pixels, at))
                labels.append(int(emotion))
                usages.append(SPLITS.index(usage.strip()))
    return Arrays(
        np.array(images, np.uint8).reshape(-1, SIDE, SIDE),
        np.array(labels, np.uint8),
        np.array(usages, np.uint8),
    )


def _pixels(text: str, at: str) -> np.ndarray:
    count = SIDE * SIDE
    try:
        values = np.fromstring(text, np.int64, sep=" ")
        if values.size == count and values.min() >= 0 and values.max() <= 255:
            return values.astype(np.uint8)
    except (ValueError, DeprecationWarning):
        pass
    # Slower, but accepts any white space and finds what is wrong.
    words = text.split()
    if len(words) != count:
        raise UserError(f"{at}: {len(words)} pixel values, expected {count}")
    for position, word in enumerate(words, 1):
        if not re.fullmatch("[0-9]{1,3}", word) or int(word) > 255:
            raise UserError(
                f"{at}: pixel {position} is {quoted(word)}, expected a whole number of 0 to 255"
            )
    return np.array([int(word) for word in words], np.uint8)


# --- folders


def folder_files(root: Path) -> list[tuple[str, int, int]]:
    """List the images of the folder form: (path below `root`, bytes, mtime in ns), sorted."""
    files = []
    with reading(root, "a folder"):
        for part in FOLDERS:
            for group in _scan(root / part):
                for entry in _scan(group.path):
                    if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                        status = entry.stat()
                        name = f"{part}/{group.name}/{entry.name}"
                        files.append((name, status.st_size, status.st_mtime_ns))
    return sorted(files)


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    if not os.path.isdir(folder):
        return []
    with reading(folder, "a folder"), os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _read_folder(root: Path) -> Arrays:
    images = {}
    for name, _, _ in folder_files(root):
        where = str(root / name)
        images[_place(PurePosixPath(name), where)] = decode_image(root / name, where)
    return _in_order(images, str(root))


def _belongs(path: PurePosixPath) -> bool:
    """Whether the path is an image at `[top/](train|test)/<class>/<file>`, not a hidden one."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    placed = len(path.parts) >= 3 and path.parts[-3] in FOLDERS
    return placed and not hidden and path.suffix.lower() in IMAGE_SUFFIXES


def _place(path: PurePosixPath, where: str) -> Place:
    group, file = path.parts[-2:]
    if group not in CLASSES:
        raise UserError(f"{where}: class folder {quoted(group)}, expected {', '.join(CLASSES)}")
    split = file.split("_")[0]
    if split not in SPLITS or "_" not in file:
        raise UserError(
            f"{where}: file name {quoted(file)}, expected one that begins with "
            + ", ".join(f"{split}_" for split in SPLITS)
        )
    return Place(SPLITS.index(split), file, CLASSES.index(group), str(path.parent))


def _in_order(images: dict[Place, np.ndarray], where: str) -> Arrays:
    if not images:
        raise UserError(
            f"{where}: holds no FER2013, expected {' or '.join(TABLE_NAMES)} or images "
            f"train/<class>/Training_*.jpg, test/<class>/PublicTest_*.jpg and PrivateTest_*.jpg"
        )
    order = sorted(images)
    return Arrays(
        np.stack([images[place] for place in order]),
        np.array([place.label for place in order], np.uint8),
        np.array([place.usage for place in order], np.uint8),
    )


# --- archives


def _read_archive(source: Path) -> Arrays:
    """Read an archive in one pass, as going back in a compressed tar means starting again."""
    table: Arrays | None = None
    images: dict[Place, np.ndarray] = {}
    left_out = 0
    with (
        reading(source, f"a whole {' '.join(ARCHIVE_SUFFIXES)}"),
        closing(_entries(source)) as entries,
    ):
        for count, (path, size, opened) in enumerate(entries, 1):
            if count > MAX_MEMBERS:
                raise UserError(f"{source}: more than {MAX_MEMBERS} members, expected at most that")
            where = f"{source}, member {path}"
            if path.name in TABLE_NAMES and "__MACOSX" not in path.parts and table is None:
                with reading(where), cast(BinaryIO, opened()) as stream:
                    table = _read_table(stream, size, where)
            elif _belongs(path):
                with reading(where), cast(BinaryIO, opened()) as stream:
                    images[_place(path, where)] = decode_image(stream, where)
            else:
                left_out += path.suffix.lower() in IMAGE_SUFFIXES
    if table is not None:
        return table
    if left_out:
        logging.getLogger(LOGGER_NAME).info(
            f"{source}: {left_out} images outside train/<class>/ and test/<class>/ left out"
        )
    tops = sorted({str(PurePosixPath(place.folder).parent.parent) for place in images})
    if len(tops) > 1:
        raise UserError(f"{source}: holds a set in each of {', '.join(tops)}; expected one set")
    return _in_order(images, str(source))


def _entries(source: Path) -> Generator[Entry, None, None]:
    """Yield the regular files of an archive; folders and links are skipped."""
    if source.name.lower().endswith(".zip"):
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                path = PurePosixPath(info.filename.replace("\\", "/"))
                if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                    continue
                if info.flag_bits & 1:
                    raise UserError(f"{source}, member {path}: encrypted, expected a plain archive")
                yield Entry(path, info.file_size, partial(archive.open, info))
        return
    with source.open("rb") as file, decompressed(file) as stream:
        unpacked: Any = Unpacked(stream)  # as much of a file as tarfile needs
        with tarfile.open(fileobj=unpacked, mode="r:") as tar:
            for member in tar:
                if member.isreg():
                    path = PurePosixPath(member.name)
                    yield Entry(path, member.size, partial(tar.extractfile, member))
            # tarfile accepts an end between two members; a whole archive ends in zeros.
            unpacked.seek(tar.offset)
            if unpacked.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("no end-of-archive mark")
            while unpacked.read(1 << 20):  # the check sum of compressed data comes last
                pass
