"""Limits on what an untrusted file may unpack to, and words of a file in error messages."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from runtime.errors import reading

MAX_UNPACKED = 1 << 31  # bytes; FER2013's table takes a seventh
# Bytes that every compressed file may hold, and how many times its size; images shrink to a half.
MAX_SMALL, MAX_RATIO = 1 << 26, 100

_COMPRESSIONS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}


def decompressed(file: BinaryIO) -> BinaryIO:
    """`file`, at its start, or its content if it is compressed by gzip, xz or bzip2."""
    start = file.read(6)
    file.seek(0)
    return next((opened(file) for magic, opened in _COMPRESSIONS.items() if start.startswith(magic)), file)


class Bounded(io.RawIOBase):
    """A stream of which `limit` bytes can be read or skipped; beyond them ValueError is raised."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._stream.read(len(buffer))
        self._check(self._stream.tell())
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        self._check(position)
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise ValueError(f"more than {self._limit} bytes in all")


def unpacked(file: BinaryIO, size: int) -> BinaryIO:
    """The content of a file of `size` bytes, bounded in relation to them."""
    limit = min(MAX_UNPACKED, max(MAX_SMALL, MAX_RATIO * size))
    return io.BufferedReader(Bounded(decompressed(file), limit), 1 << 16)


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file; raises UserError, naming what was `expected`."""
    with reading(path, expected):
        return json.loads(path.read_bytes())


def quoted(text: str, length: int = 40) -> str:
    """A word of a file, for an error message."""
    return repr(text if len(text) <= length else f"{text[: length - 3]}...")
