"""FER2013 in the forms users have it: a table, a folder of images, or an archive of either.

Whatever the form, the result is the same three arrays. Nothing is unpacked to disk, and whatever
is wrong is refused here, with the file and the line or member named.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from data.bounded import Unpacked, decompressed, table_lines
from data.images import SIDE, decode_image
from utils import UserError

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SPLITS = ("Training", "PublicTest", "PrivateTest")

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")
TABLE_NAMES = ("fer2013.csv", "icml_face_data.csv")
FOLDERS = ("train", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
COLUMNS = ("emotion", "pixels", "Usage")
MAX_TABLE_BYTES = 1 << 30
MAX_MEMBERS = 200_000
ROWS_AT_ONCE = 2048

ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # a compression method that zipfile lacks
    UnicodeDecodeError,  # a member name that is not the UTF-8 it claims to be
)


class Arrays(NamedTuple):
    """A whole set: images uint8 (N, 48, 48), labels uint8 (N,) in 0..6, usage uint8 (N,) in 0..2.

    The numbers index CLASSES and SPLITS. A table keeps its row order; images from a folder are
    sorted by split and file name, whose numbers do not go by class.
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

    name: str
    size: int
    open: Callable[[], BinaryIO]


def read_set(source: Path, report: Callable[[str], None]) -> Arrays:
    """Read the set at `source`: a `.csv`, an archive, or a folder that holds train/ or test/.

    `report` gets a line for what was left out. Raises UserError, naming file and line or member,
    for anything malformed and for a set in which one of the three splits has no image.
    """
    if source.is_dir():
        arrays = _read_folder(source)
    elif source.name.lower().endswith(ARCHIVE_SUFFIXES):
        arrays = _read_archive(source, report)
    elif source.suffix.lower() == ".csv":
        try:
            with source.open("rb") as stream:
                arrays = _read_table(stream, source.stat().st_size, str(source))
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error.strerror or error})") from error
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


# ---------------------------------------------------------------- the table form


def _read_table(stream: BinaryIO, size: int, where: str) -> Arrays:
    if size > MAX_TABLE_BYTES:
        raise UserError(f"{where}: {size} bytes, expected at most {MAX_TABLE_BYTES}")
    parts, line = [], 2  # the header is line 1
    try:
        # Blank lines are kept so that row numbers stay those of the file.
        chunks = pd.read_csv(
            table_lines(stream, where),
            dtype=str,
            na_filter=False,
            skipinitialspace=True,
            skip_blank_lines=False,
            encoding_errors="replace",
            chunksize=ROWS_AT_ONCE,
        )
        for chunk in chunks:
            chunk.columns = [str(name).strip() for name in chunk.columns]
            missing = [name for name in COLUMNS if list(chunk.columns).count(name) != 1]
            if missing:
                raise UserError(
                    f"{where}, line 1: no column {', '.join(missing)}; "
                    f"expected the columns {','.join(COLUMNS)}"
                )
            check_fields(chunk, where)
            rows = zip(*(chunk[name] for name in COLUMNS), strict=True)
            parts.append(_table_rows(rows, line, where))
            line += len(chunk)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(
            f"{where}: {describe_table_error(error)}; expected a table of {','.join(COLUMNS)}"
        ) from error
    return Arrays(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def check_fields(table: pd.DataFrame, where: str) -> None:
    """Raise UserError when the first row of a table as read has more fields than its header."""
    # pandas makes an index of the first fields then.
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(
            f"{where}, line 2: more fields than the {len(table.columns)} of the header, "
            "expected as many"
        )


def describe_table_error(error: Exception) -> str:
    """What pandas says of a table that it cannot read, on one line, lines counted from 1.

    Raises MemoryError where that was exhausted, of which pandas makes an error of the table.
    """
    # What our own reading raises comes through pandas as it is; "Calling read" is memory's as well.
    if "out of memory" in str(error) or "Calling read" in str(error):
        raise MemoryError("reading a table") from error
    found = str(error).strip().replace("Error tokenizing data. C error: ", "")
    # pandas counts lines from 1, but the row where an open quote starts from 0.
    return re.sub(r"row (\d+)", lambda row: f"line {int(row[1]) + 1}", found)


def _table_rows(rows: Iterator[tuple[str, str, str]], line: int, where: str) -> Arrays:
    images, labels, usages = [], [], []
    with warnings.catch_warnings():
        # Older numpy only warns of text after the last number it understood.
        warnings.simplefilter("error", DeprecationWarning)
        for number, (emotion, pixels, usage) in enumerate(rows, line):
            if not (emotion or pixels or usage):
                continue
            at = f"{where}, line {number}"
            if emotion.strip() not in "0123456" or len(emotion.strip()) != 1:
                raise UserError(f"{at}: emotion {_shown(emotion)}, expected a class of 0 to 6")
            if usage.strip() not in SPLITS:
                raise UserError(f"{at}: Usage {_shown(usage)}, expected {', '.join(SPLITS)}")
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
    words = text.split()
    if len(words) != count:
        raise UserError(f"{at}: {len(words)} pixel values, expected {count}")
    for position, word in enumerate(words, 1):
        if not re.fullmatch("[0-9]{1,3}", word) or int(word) > 255:
            raise UserError(
                f"{at}: pixel {position} is {_shown(word)}, expected a whole number of 0 to 255"
            )
    return np.array([int(word) for word in words], np.uint8)


# ---------------------------------------------------------------- the folder form


def folder_files(root: Path) -> list[tuple[str, int, int]]:
    """List the images of the folder form: (path below `root`, bytes, mtime in ns), sorted."""
    files = []
    try:
        for part in FOLDERS:
            for group in _scan(root / part):
                for entry in _scan(group.path):
                    if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                        status = entry.stat()
                        name = f"{part}/{group.name}/{entry.name}"
                        files.append((name, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return sorted(files)


def _scan(folder: str | Path) -> list[os.DirEntry]:
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _read_folder(root: Path) -> Arrays:
    images = {}
    for name, size, _ in folder_files(root):
        where = str(root / name)
        place = _place(PurePosixPath(name), where)
        try:
            with open(root / name, "rb") as stream:
                images[place] = decode_image(stream, size, where)
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror or error})") from error
    return _in_order(images, str(root))


def _belongs(path: PurePosixPath) -> bool:
    """Whether the path is an image at `[top/](train|test)/<class>/<file>`, not a hidden one."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    placed = len(path.parts) >= 3 and path.parts[-3] in FOLDERS
    return placed and not hidden and path.suffix.lower() in IMAGE_SUFFIXES


def _place(path: PurePosixPath, where: str) -> Place:
    group, file = path.parts[-2:]
    if group not in CLASSES:
        raise UserError(f"{where}: class folder {_shown(group)}, expected {', '.join(CLASSES)}")
    split = file.split("_")[0]
    if split not in SPLITS or "_" not in file:
        raise UserError(
            f"{where}: file name {_shown(file)}, expected one that begins with "
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


# ---------------------------------------------------------------- either of them in an archive


def _read_archive(source: Path, report: Callable[[str], None]) -> Arrays:
    """One pass over the archive, since going back in a compressed tar means starting again."""
    table, images, left_out, name = None, {}, 0, ""
    try:
        with closing(_entries(source)) as entries:
            for entry in entries:
                name = entry.name
                where = f"{source}, member {name}"
                path = PurePosixPath(name)
                if path.name in TABLE_NAMES and "__MACOSX" not in path.parts and table is None:
                    with entry.open() as stream:
                        table = _read_table(stream, entry.size, where)
                elif _belongs(path):
                    with entry.open() as stream:
                        images[_place(path, where)] = decode_image(stream, entry.size, where)
                else:
                    left_out += path.suffix.lower() in IMAGE_SUFFIXES
    except ARCHIVE_ERRORS as error:
        after = f", at or after member {name}" if name else ""
        raise UserError(
            f"{source}{after}: damaged or truncated archive ({error}), "
            f"expected a whole {' '.join(ARCHIVE_SUFFIXES)}"
        ) from error
    if table is not None:
        return table
    if left_out:
        report(f"{source}: {left_out} images outside train/<class>/ and test/<class>/ left out")
    tops = sorted({str(PurePosixPath(place.folder).parent.parent) for place in images})
    if len(tops) > 1:
        raise UserError(f"{source}: holds a set in each of {', '.join(tops)}; expected one set")
    return _in_order(images, str(source))


def _entries(source: Path) -> Iterator[Entry]:
    """Yield the regular files of an archive; links are passed over, outside paths refused."""
    seen = 0

    def inside(name: str) -> str:
        nonlocal seen
        seen += 1
        if seen > MAX_MEMBERS:
            raise UserError(f"{source}: expected at most {MAX_MEMBERS} members, found more")
        return _inside(name, source)

    if source.name.lower().endswith(".zip"):
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                name = inside(info.filename.replace("\\", "/"))
                if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                    continue
                if info.flag_bits & 1:
                    raise UserError(f"{source}, member {name}: encrypted, expected a plain archive")
                yield Entry(name, info.file_size, partial(archive.open, info))
        return
    with (
        source.open("rb") as file,
        decompressed(file) as stream,
        tarfile.open(fileobj=Unpacked(stream, str(source)), mode="r:") as archive,
    ):
        for member in archive:
            name = inside(member.name)
            if member.isreg():
                yield Entry(name, member.size, partial(archive.extractfile, member))
        # tarfile takes a cut between two members for the end; a whole archive ends in zeros.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("no end-of-archive mark")
        while archive.fileobj.read(1 << 20):  # the check sum of what was compressed comes last
            pass


def _inside(name: str, source: Path) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        raise UserError(
            f"{source}: member {_shown(name)} points outside, expected paths inside the archive"
        )
    return str(path)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
