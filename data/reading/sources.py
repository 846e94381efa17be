"""The files of a folder or an archive, and the set among them that is to be read.

An archive is known by its content, whatever its name, and is read without unpacking it to disk.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL.Image import Image
from tqdm import tqdm

from auto_fernet.pictures import GUESSED, Box
from data.reading.bounded import check_unpacked, quoted
from data.reading.images import SUFFIXES, decode_image
from data.reading.layouts import are_evident, describe_choice, place_of, preference_key, split_of
from data.types import SIDE
from runtime.errors import UserError, reading
from runtime.logs import LOGGER_NAME
from runtime.processes import hide_progress

MAX_DEPTH, MAX_AROUND = 8, 3  # folders around a file of a set, and around an archive
# Members of a tar that are as small are kept in memory: going back in a compressed tar means
# decompressing it again.
MAX_KEPT = 1 << 20
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
SKIPPED = ("__MACOSX", "Thumbs.db", "desktop.ini", "lost+found")  # and names with a leading dot
_GZIP_XZ_BZIP2 = (b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh")


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


class SetKind(ABC):
    """A kind of set that is looked for: how it is known among files, and which is preferred.

    `names` are preferred names of its folder or file and `start` what others begin with, as
    `data.reading.layouts.plain` makes them; `missing` is said after a path where there is none.
    `others` are the roots of sets of other kinds too, which are read only if they are named.
    """

    names: tuple[str, ...]
    start: str
    missing: str
    others = re.compile("(?!)")

    @abstractmethod
    def sets(self, entries: list[Entry]) -> Sets:
        """The sets of this kind among files."""

    def sets_below(self, entries: list[Entry]) -> Sets:
        """The sets of this kind and no other, among files that were not named."""
        sets = self.sets(entries).items()
        return {root: items for root, items in sets if not self.others.fullmatch(root)}

    def preference(self, root: str, items: list[Item] | None) -> tuple:
        """The `preference_key` of a set, or of an archive, whose items are None."""
        if items is None:
            form = 1
        elif not items[0].name or items[0].split:
            form = 2 if items[0].name else 0
        else:
            form = 3 if are_evident({item.name for item in items}) else 4
        return preference_key(root, form, self.names, self.start)


class Source:
    """A folder, archive or table that is open, the set in it, and lines on how it was read.

    `archive` is "zip", "tar" or "". Its files are listed when they are first asked for.
    """

    def __init__(
        self, path: Path, kind: SetKind, files: Callable[[], Iterable[Entry]], archive: str = ""
    ) -> None:
        self.path, self.kind, self.archive = path, kind, archive
        self.notes: list[str] = []
        self._files = files

    @cached_property
    def entries(self) -> list[Entry]:
        """The files."""
        return list(self._files())

    @cached_property
    def items(self) -> list[Item]:
        """The images or tables of the set; of several sets the preferred. UserError if none."""
        sets = self.kind.sets(self.entries)
        if not sets:
            raise UserError(f"{self.path}: {self.kind.missing}")
        keys = sorted(self.kind.preference(root, items) for root, items in sets.items())
        if len(keys) > 1:
            self.say(describe_choice(keys))
        return sets[keys[0][-1]]

    def say(self, text: str) -> None:
        """Note a line; names of files in it may hold control characters."""
        self.notes.append(str(UserError(text)))

    def read(
        self, crop: Callable[[Item, Image], Box | None] = lambda *_: None
    ) -> Iterator[tuple[Item, np.ndarray]]:
        """Decode the images of the set, resized to 48x48, or the part that `crop` gives."""
        sizes: Counter[tuple[int, int]] = Counter()
        depths: Counter[int] = Counter()

        def counted(item: Item, image: Image) -> Box | None:
            box = crop(item, image)
            sizes.update([image.size] if box is None else [])
            depths.update([image.info[GUESSED]] if GUESSED in image.info else [])
            return box

        bar = tqdm(self.items, "reading", unit=" images", leave=False, disable=hide_progress())
        for item in bar:
            with reading(item.entry.where), item.entry.open() as stream:
                yield item, decode_image(stream, item.entry.where, partial(counted, item))
        del sizes[SIDE, SIDE]
        if sizes:
            named = ", ".join(f"{width}x{height}" for (width, height), _ in sizes.most_common(4))
            self.say(f"{sizes.total()} images of other sizes ({named}) resized to {SIDE}x{SIDE}")
        for bits, number in depths.items():
            self.say(f"{number} images without a gray above {2**bits - 1} are read as {bits} bits")

    def say_left_out(self) -> None:
        """Note the number of files that are not of the set, by folder of images or by suffix."""
        used = {item.entry.path for item in self.items}
        left = Counter(
            f"images in {quoted(os.path.dirname(entry.path) or '.')}" if entry.is_image()
            else f"{os.path.splitext(entry.name)[1] or quoted(entry.name)} files"
            for entry in self.entries if entry.path not in used
        ).most_common()  # fmt: skip
        if left:
            named = ", ".join(f"{count} {what}" for what, count in left[:8])
            self.say(f"left out: {named}{', ...' if left[8:] else ''}")

    def say_differences(self, differences: Sequence[str], of: str) -> None:
        """Note where the counts are others than those of a set, if there are any."""
        if differences:
            self.say(f"counts differ from {of}'s: {', '.join(differences)}")

    def log(self) -> None:
        """Log the notes."""
        for note in self.notes:
            logging.getLogger(LOGGER_NAME).info(f"{self.path}: {note}")


# --- opening one


@contextmanager
def open_source(path: str | Path, kind: SetKind) -> Iterator[Source]:
    """Open the set of a kind that `path` is, or the preferred one of those in a folder.

    Of several the log says which and why. Hidden files, links in archives and paths that point
    outside are skipped. What is raised in the block becomes a UserError that names the source;
    UserError, too, if there is no such set.
    """
    path = Path(path)
    with ExitStack() as stack:
        stack.enter_context(reading(path))
        if path.is_dir():
            source = _choose(path, kind, stack)
        elif path.is_file():
            source = _open_file(path, kind, stack)
        else:
            raise UserError(f"--data {path}: {kind.missing}")
        expected = "a whole zip or tar archive" if source.archive else ""
        stack.enter_context(reading(source.path, expected))
        yield source


def _open_file(path: Path, kind: SetKind, stack: ExitStack) -> Source:
    """An archive, which stays open as long as `stack`, or a table and those of its other splits."""
    if archive := _archive_of(path):
        return Source(path, kind, partial(_members, path, archive, stack), archive)
    beside = path.parent.glob(f"*{path.suffix}") if split_of(path.stem) else []
    tables = [path, *sorted(other for other in beside if split_of(other.stem) and other != path)]
    return Source(path, kind, lambda: [_entry(table, table.name) for table in tables])


def _choose(folder: Path, kind: SetKind, stack: ExitStack) -> Source:
    """The preferred set in a folder: a folder in it, a table or an archive."""
    entries = list(_walk(folder))
    sets = kind.sets_below(entries)
    archives = {
        entry.path: _open_file(folder / entry.path, kind, stack)
        for entry in entries
        if entry.path.count("/") <= MAX_AROUND
        and not (entry.is_image() or entry.path in sets)
        and _archive_of(folder / entry.path)
    }
    keys = sorted(kind.preference(root, sets.get(root)) for root in (*sets, *archives))
    keys = [key for key in keys if key[-1] in sets or _holds_set(archives[key[-1]], key[0] < 2)]
    if not keys:
        raise UserError(f"--data {folder}: {kind.missing}")
    if len(keys) > 1:
        said = UserError(f"{folder}: {describe_choice(keys)}")  # in one printable line
        logging.getLogger(LOGGER_NAME).info(str(said))
    root = keys[0][-1]
    if root in archives:
        return archives[root]
    if not sets[root][0].name:
        return _open_file(folder / root, kind, stack)
    start = f"{root}/" if root else ""

    def inside(entry: Entry) -> Entry:
        return entry._replace(path=entry.path.removeprefix(start))

    below = [inside(entry) for entry in entries if entry.path.startswith(start)]
    source = Source(folder / root, kind, lambda: below)
    source.items = [item._replace(entry=inside(item.entry)) for item in sets[root]]
    return source


def _holds_set(source: Source, named: bool) -> bool:
    """Whether an archive holds a set; a tar, which may have to be decompressed for it, by name."""
    if source.archive == "tar":
        return named
    try:
        with reading(source.path):
            return bool(source.kind.sets_below(source.entries))
    except UserError:
        return named  # so that reading it says what is wrong


# --- listing files


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in SKIPPED


def _entry(file: Path, path: str) -> Entry:
    status = file.stat()
    return Entry(path, str(file), status.st_size, time_mark(status), partial(file.open, "rb"))


def time_mark(status: os.stat_result) -> str:
    """When a file was changed: as it says, which anybody can set back, and as the system noted."""
    return f"{status.st_mtime_ns} {status.st_ctime_ns}"


def _walk(folder: Path, below: str = "", depth: int = MAX_DEPTH) -> Iterator[Entry]:
    with reading(folder, "a folder"), os.scandir(folder) as files:
        listed = sorted((f for f in files if not _is_skipped(f.name)), key=lambda f: f.name)
    for file in listed:
        if file.is_file():
            yield _entry(folder / file.name, below + file.name)
        elif file.is_dir() and depth > 0:
            yield from _walk(folder / file.name, f"{below}{file.name}/", depth - 1)


def _archive_of(path: Path) -> str:
    """The kind of archive that a file is by its content: "zip", "tar", maybe compressed, or ""."""
    with path.open("rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    if start.startswith(b"PK"):
        return "zip"
    return "tar" if start.startswith(_GZIP_XZ_BZIP2) or start[257:262] == b"ustar" else ""


def _members(path: Path, archive: str, stack: ExitStack) -> Iterator[Entry]:
    """The regular files of an archive."""
    for name, size, opened in (_zipped if archive == "zip" else _tarred)(path, stack):
        parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
        if parts and parts[0] and not any(map(_is_skipped, parts)):
            inside = "/".join(filter(None, parts))
            yield Entry(inside, f"{path}, member {inside}", size, "", opened)


Member = tuple[str, int, Callable[[], Any]]  # name, size in bytes, how to open it


def _zipped(path: Path, stack: ExitStack) -> Iterator[Member]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    for info in archive.infolist():
        if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
            yield info.filename, info.file_size, partial(archive.open, info)


def _tarred(path: Path, stack: ExitStack) -> Iterator[Member]:
    size = path.stat().st_size
    tar = stack.enter_context(tarfile.open(path))  # noqa: SIM115
    for member in tqdm(tar, "listing", unit=" files", leave=False, disable=hide_progress()):
        check_unpacked(member.offset_data + member.size, size)
        if member.isreg():
            opened: Callable[[], Any] = partial(tar.extractfile, member)
            if member.size <= MAX_KEPT:
                opened = partial(io.BytesIO, opened().read())
            yield member.name, member.size, opened
    # tarfile accepts an end between two members; a whole archive ends in zeros.
    stream: Any = tar.fileobj
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("no end-of-archive mark")
    while stream.read(1 << 20):  # the check sum of compressed data comes last
        check_unpacked(stream.tell(), size)


def class_folders(entries: list[Entry]) -> Sets:
    """The images in class folders, by the folder of their set."""
    sets = defaultdict(list)
    for entry in filter(Entry.is_image, entries):
        if place := place_of(entry.path):
            root, split, name = place
            sets[root].append(Item(entry, split, name))
    return sets
