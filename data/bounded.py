"""Streams from strangers: what is read of them at once, and in all, has limits."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
from pathlib import Path
from typing import Any, BinaryIO

from utils import UserError

MAX_HEADER = 1024  # bytes of a table's first line; a hundred columns take less
MAX_LINE = 1 << 16  # bytes; a row of FER2013 takes up to 9,300
MAX_READ = 1 << 26  # bytes at once; only a forged header of a member asks for as much
MAX_UNPACKED = 1 << 31  # bytes; FER2013's table takes a seventh
MAX_JSON = 1 << 22  # bytes; the largest summary takes some ten thousand

_COMPRESSIONS = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}


def decompressed(file: BinaryIO) -> BinaryIO:
    """`file` at its start, or what it holds where it is compressed by gzip, xz or bzip2."""
    start = file.read(6)
    file.seek(0)
    for magic, opened in _COMPRESSIONS.items():
        if start.startswith(magic):
            return opened(file)
    return file


class Unpacked:
    """A tar's stream of which nothing beyond MAX_UNPACKED bytes is read, nor MAX_READ at once.

    tarfile reads the headers of members whole, however long they say that they are; and members
    that are passed over are decompressed nevertheless.
    """

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream = stream
        self._where = where

    def read(self, size: int = -1) -> bytes:
        """As a file; UserError beyond the limits."""
        if not 0 <= size <= MAX_READ:
            raise UserError(
                f"{self._where}: a header of {size} bytes inside, expected at most {MAX_READ}"
            )
        self._check(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        """As a file; UserError beyond the limits."""
        self._check(position)
        return self._stream.seek(position)

    def tell(self) -> int:
        """As a file."""
        return self._stream.tell()

    def seekable(self) -> bool:
        """As a file."""
        return True

    def _check(self, position: int) -> None:
        if not 0 <= position <= MAX_UNPACKED:
            raise UserError(
                f"{self._where}: a member at or up to byte {position} of what it unpacks to, "
                f"expected at most {MAX_UNPACKED} bytes in all"
            )


class Lines(io.RawIOBase):
    """A table's bytes, refused where its first line or any other is too long to be of a table.

    pandas holds a line whole, and takes minutes for a header of a hundred thousand columns.
    """

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream = stream
        self._where = where
        self._ahead = stream.read(MAX_HEADER + 1)
        header = re.split(rb"[\r\n]", self._ahead, maxsplit=1)[0]
        # With a quote left open the header would go on in the next line.
        if len(header) > MAX_HEADER or header.count(b'"') % 2:
            raise UserError(
                f"{where}, line 1: more than {MAX_HEADER} bytes or a quote left open, expected the "
                "names of columns"
            )
        self._length = 0  # of the line under way

    def readable(self) -> bool:
        """As a file."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """As a file; UserError beyond the limits."""
        # No more at once than a line may have: then none can hide between two line ends.
        size = min(len(buffer), MAX_LINE)
        chunk, self._ahead = self._ahead[:size] or self._stream.read(size), self._ahead[size:]
        ends = [chunk.find(end) for end in (b"\n", b"\r") if end in chunk]
        if self._length + (min(ends) if ends else len(chunk)) > MAX_LINE:
            raise UserError(f"{self._where}: a line of more than {MAX_LINE} bytes, expected a row")
        last = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
        self._length = len(chunk) - last - 1 + (0 if ends else self._length)
        buffer[: len(chunk)] = chunk
        return len(chunk)


def table_lines(stream: BinaryIO, where: str) -> BinaryIO:
    """`stream` from its start as a table that pandas may read; UserError as `Lines`."""
    return io.BufferedReader(Lines(stream, where), MAX_LINE)


def read_json(path: Path, expected: str) -> Any:
    """What the JSON of a file says; UserError, saying what was `expected`, where it is none."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON + 1)
        if len(text) > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON} bytes")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}), expected {expected}") from error
