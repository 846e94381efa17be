"""The files of a folder or an archive, and the set among them that is to be read.

An archive is known by its content, whatever its name, and is read without unpacking it to disk.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL.Image import Image
from tqdm import tqdm

from auto_fernet.pictures import Box
from data.bounded import Unpacked, decompressed, quoted
from data.images import SUFFIXES, decode_image
from data.layouts import are_evident, describe_choice, place_of, rank, split_of
from data.types import SIDE, Faces, count_differences
from runtime.errors import UserError, reading
from runtime.logs import LOGGER_NAME
from runtime.processes import hide_progress

MAX_MEMBERS = 200_000
MAX_DEPTH, MAX_AROUND = 8, 3  # folders around a file of a set, and around an archive
# Members of a tar are kept if they are as small as this, and this much in all: going back in a
# compressed tar means decompressing it again.
MAX_KEPT, MAX_KEPT_IN_ALL = 1 << 20, 1 << 28
MAX_NAMED = 8  # kinds of files that are named in a line
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
SKIPPED = ("__MACOSX", "Thumbs.db", "desktop.ini", "lost+found")  # and names with a leading dot


class Entry(NamedTuple):
    """A file: its path inside the source and for messages, bytes, `time_mark`, how to open it."""

    path: str
    where: str
    size: int
    time: str
    open: Callable[[], Any]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def is_image(self) -> bool:
        return self.path.lower().endswith(SUFFIXES)

    def is_table(self) -> bool:
        return self.path.lower().endswith(TABLE_SUFFIXES)


class Item(NamedTuple):
    """An image or a table of a set: its split if known, and the name of its class ("": table)."""

    entry: Entry
    split: str | None
    name: str


Sets = dict[str, list[Item]]  # by root: the path of a folder or the first table, inside a source


class Sought(NamedTuple):
    """The kind of set that is looked for, as `sets` finds it among files.

    `exact` and `start` are for `data.layouts.rank`; `missing` says after a path that none is there.
    """

    sets: Callable[[list[Entry]], Sets]
    exact: tuple[str, ...]
    start: str
    missing: str

    def ranks(self, sets: Sets) -> list[tuple]:
        def form(items: list[Item]) -> int:
            if not items[0].name or items[0].split:
                return 2 if items[0].name else 0
            return 3 if are_evident({item.name for item in items}) else 4

        return sorted(rank(r, form(items), self.exact, self.start) for r, items in sets.items())


class Source:
    """A folder, archive or table that is open: its files, and lines on how it was read."""

    def __init__(self, path: Path, entries: list[Entry]) -> None:
        self.path, self.entries = path, entries
        self.notes: list[str] = []

    def say(self, text: str) -> None:
        """Note a line; names of files in it may hold control characters."""
        self.notes.append(str(UserError(text)))

    def choose(self, sought: Sought) -> list[Item]:
        """The items of the set that is sought; of several the first by rank. UserError if none."""
        sets = sought.sets(self.entries)
        if not sets:
            raise UserError(f"{self.path}: {sought.missing}")
        ranks = sought.ranks(sets)
        if len(ranks) > 1:
            self.say(describe_choice(ranks))
        return sets[ranks[0][-1]]

    def read(
        self, items: list[Item], crop: Callable[[Item, Image], Box | None] = lambda *_: None
    ) -> Iterator[tuple[Item, np.ndarray]]:
        """Decode the images `items`, resized to 48x48, or the part that `crop` gives."""
        sizes: Counter[tuple[int, int]] = Counter()

        def counted(item: Item, image: Image) -> Box | None:
            box = crop(item, image)
            sizes.update([image.size] if box is None else [])
            return box

        for item in tqdm(items, "reading", unit=" images", leave=False, disable=hide_progress()):
            with reading(item.entry.where), item.entry.open() as stream:
                yield item, decode_image(stream, item.entry.where, partial(counted, item))
        del sizes[SIDE, SIDE]
        if sizes:
            found = ", ".join(f"{width}x{height}" for (width, height), _ in sizes.most_common(4))
            self.say(f"{sizes.total()} images of other sizes ({found}) resized to {SIDE}x{SIDE}")

    def say_left_out(self, items: list[Item]) -> None:
        """Note the number of files that are not `items`, by folder of images or by suffix."""
        used = {item.entry.path for item in items}
        left = Counter(
            f"images in {quoted(os.path.dirname(entry.path) or '.')}" if entry.is_image()
            else f"{os.path.splitext(entry.name)[1] or quoted(entry.name)} files"
            for entry in self.entries if entry.path not in used
        ).most_common()  # fmt: skip
        named = [f"{count} {what}" for what, count in left[:MAX_NAMED]]
        if rest := sum(count for _, count in left[MAX_NAMED:]):
            named.append(f"{rest} other files")
        if named:
            self.say(f"left out: {', '.join(named)}")

    def log_faces(
        self, faces: Faces, classes: Sequence[str], counts: Sequence[int], of: str
    ) -> Faces:
        """Log the lines, and one on classes that have another number of images than `counts`."""
        if differences := count_differences(faces.labels, classes, counts):
            self.say(f"counts differ from {of}'s: {', '.join(differences)}")
        for note in self.notes:
            logging.getLogger(LOGGER_NAME).info(f"{self.path}: {note}")
        return faces


def is_archive(path: Path) -> bool:
    """Whether a file is a zip, or a tar or table that may be compressed, by its content."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(512)[257:262] == b"ustar":
            return True
        file.seek(0)
        return _is_zip(path) or decompressed(file) is not file
    return False


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a folder, an archive, or a table, with those beside it that hold its other splits.

    Hidden files, links in archives and paths that point outside are skipped. What is raised in the
    block becomes a UserError that names `path`.
    """
    with ExitStack() as stack:
        if path.is_dir():
            stack.enter_context(reading(path, "a folder"))
            entries = list(_walk(path, "", MAX_DEPTH))
        elif is_archive(path):
            stack.enter_context(reading(path, "a whole zip or tar archive"))
            entries = []
            for entry in _members(path, stack):
                parts = [part for part in entry.path.replace("\\", "/").split("/") if part != "."]
                if parts and parts[0] and not any(map(_is_skipped, parts)):
                    inside = "/".join(filter(None, parts))
                    entries.append(entry._replace(path=inside, where=f"{path}, member {inside}"))
        else:
            stack.enter_context(reading(path))
            beside = path.parent.glob(f"*{path.suffix}") if split_of(path.stem) else []
            others = sorted(each for each in beside if split_of(each.stem) and each != path)
            entries = [_entry(each, each.name) for each in (path, *others)]
        yield Source(path, entries)


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in SKIPPED


def _entry(file: Path, path: str) -> Entry:
    status = file.stat()
    return Entry(path, str(file), status.st_size, time_mark(status), partial(file.open, "rb"))


def time_mark(status: os.stat_result) -> str:
    """When a file was changed: as it says, which anybody can set back, and as the system noted."""
    return f"{status.st_mtime_ns} {status.st_ctime_ns}"


def _walk(folder: Path, below: str, depth: int) -> Iterator[Entry]:
    with reading(folder, "a folder"), os.scandir(folder) as found:
        listed = sorted(
            (each for each in found if not _is_skipped(each.name)), key=lambda e: e.name
        )
    for each in listed:
        if each.is_file():
            yield _entry(folder / each.name, below + each.name)
        elif each.is_dir() and depth > 0:
            yield from _walk(folder / each.name, f"{below}{each.name}/", depth - 1)


def _members(path: Path, stack: ExitStack) -> Iterator[Entry]:
    """The regular files of an archive, which stays open as long as `stack`."""
    if _is_zip(path):
        archive = stack.enter_context(zipfile.ZipFile(path))
        for count, info in enumerate(archive.infolist(), 1):
            _check_count(path, count)
            if info.flag_bits & 1:
                where = f"{path}, member {info.filename}"
                raise UserError(f"{where}: encrypted, expected a plain archive")
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                yield Entry(info.filename, "", info.file_size, "", partial(archive.open, info))
        return
    file = stack.enter_context(path.open("rb"))
    stream = stack.enter_context(decompressed(file))
    unpacked: Any = Unpacked(stream, path.stat().st_size)  # as much of a file as tarfile needs
    if stream is not file and path.stem.lower().endswith(TABLE_SUFFIXES):
        yield Entry(path.stem, "", 0, "", unpacked.restart)  # one compressed table
        return
    tar = stack.enter_context(tarfile.TarFile(fileobj=unpacked))
    kept = 0
    bar = tqdm(tar, "listing", unit=" files", leave=False, disable=hide_progress())
    for count, member in enumerate(bar, 1):
        _check_count(path, count)
        if member.isreg():
            opened: Callable[[], Any] = partial(tar.extractfile, member)
            if member.size <= MAX_KEPT and kept + member.size <= MAX_KEPT_IN_ALL:
                kept += member.size
                opened = partial(io.BytesIO, opened().read())
            yield Entry(member.name, "", member.size, "", opened)
    # tarfile accepts an end between two members; a whole archive ends in zeros.
    unpacked.seek(tar.offset)
    if unpacked.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("no end-of-archive mark")
    while unpacked.read(1 << 20):  # the check sum of compressed data comes last
        pass


def _check_count(path: Path, count: int) -> None:
    if count > MAX_MEMBERS:
        raise UserError(f"{path}: more than {MAX_MEMBERS} members, expected at most that")


def class_folders(entries: list[Entry]) -> Sets:
    """The images in class folders, by the folder of their set."""
    found = defaultdict(list)
    for entry in filter(Entry.is_image, entries):
        if place := place_of(entry.path):
            found[place.root].append(Item(entry, place.split, place.name))
    return found


def find_source(path: str | Path, sought: Sought) -> Path:
    """The table, archive or folder that `path` is or holds; UserError if there is none.

    Of several the first by `data.layouts.rank` is taken, and one line says which and why.
    """
    path = Path(path)
    if path.is_file():
        return path
    taken: list[tuple] = []
    if path.is_dir():
        with open_source(path) as source:
            sets = sought.sets(source.entries)
        near = (
            e.path for e in source.entries if e.path.count("/") <= MAX_AROUND and not e.is_image()
        )
        archives = [each for each in near if each not in sets and is_archive(path / each)]
        ranks = [rank(each, 1, sought.exact, sought.start) for each in archives]
        for found in sorted(sought.ranks(sets) + ranks):
            if found[-1] in sets or _holds(path / found[-1], found[0] < 2, sought, bool(taken)):
                taken.append(found)
    if not taken:
        raise UserError(f"--data {path}: {sought.missing}")
    if len(taken) > 1:
        said = UserError(f"{path}: {describe_choice(taken)}")  # in one printable line
        logging.getLogger(LOGGER_NAME).info(str(said))
    return path / taken[0][-1]


def _holds(archive: Path, named: bool, sought: Sought, spare: bool) -> bool:
    """Whether an archive holds a set that is sought; decompressed for it only if it must be."""
    if not _is_zip(archive) and (named or spare):
        return named
    try:
        with open_source(archive) as source:
            return bool(sought.sets(source.entries))
    except UserError:
        return named  # so that reading it says what is wrong
