"""Reading untrusted files with limits on what is read at once and in all."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from runtime.errors import UserError, reading

MAX_HEADER = 1024  # bytes of a table's first line; a hundred columns take less
MAX_LINE = 1 << 16  # bytes; a row of FER2013 takes up to 9,300
MAX_ROWS = 200_000  # blank ones included; FER2013 has 35,887
ROWS_AT_ONCE = 2048
MAX_READ = 1 << 26  # bytes at once; only a forged header of a member asks for as much
MAX_UNPACKED = 1 << 31  # bytes; FER2013's table takes a seventh
# Bytes that every compressed file may hold, and how many times its size; images shrink to a half.
MAX_SMALL, MAX_RATIO = 1 << 26, 100
MAX_JSON = 1 << 22  # bytes; the largest summary takes some ten thousand

_COMPRESSIONS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}


def decompressed(file: BinaryIO) -> BinaryIO:
    """`file`, at its start, or its content if it is compressed by gzip, xz or bzip2."""
    start = file.read(6)
    file.seek(0)
    for magic, opened in _COMPRESSIONS.items():
        if start.startswith(magic):
            return opened(file)
    return file


class Unpacked:
    """The stream of a tar of `size` bytes: raises ValueError beyond what such a file may hold.

    That is MAX_READ bytes at once, and MAX_RATIO times its size in all. tarfile reads the headers
    of members whole, whatever length they claim, and decompresses members that are skipped.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._most = min(MAX_UNPACKED, max(MAX_SMALL, MAX_RATIO * size))

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise ValueError(f"a header of {size} bytes inside, expected at most {MAX_READ}")
        self._check(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        self._check(position)
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True

    def restart(self) -> Any:
        """The stream from its start, as an open file that is not closed."""
        self._stream.seek(0)
        return nullcontext(self)

    def _check(self, position: int) -> None:
        if not 0 <= position <= self._most:
            raise ValueError(f"byte {position}, expected at most {self._most} bytes in all")


class Lines(io.RawIOBase):
    """The bytes of a table; raises ValueError for a line that is too long.

    pandas holds a line whole, and takes minutes for a header of a hundred thousand columns.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._ahead = stream.read(MAX_HEADER + 1)
        header = re.split(rb"[\r\n]", self._ahead, maxsplit=1)[0]
        # With a quote left open the header would continue in the next line.
        if len(header) > MAX_HEADER or header.count(b'"') % 2:
            raise ValueError(f"line 1: more than {MAX_HEADER} bytes or a quote left open")
        self.encoding = encoding_of(self._ahead)
        text = header.decode(self.encoding, "replace")
        self.separator = max(",;\t|", key=text.count)
        self._length = self._lines = 0  # of the line that is not complete yet; complete ones

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # At most MAX_LINE bytes at once, so that no longer line lies between two line ends.
        size = min(len(buffer), MAX_LINE)
        chunk, self._ahead = self._ahead[:size] or self._stream.read(size), self._ahead[size:]
        ends = [chunk.find(end) for end in (b"\n", b"\r") if end in chunk]
        if self._length + (min(ends) if ends else len(chunk)) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} bytes")
        last = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
        self._length = len(chunk) - last - 1 + (0 if ends else self._length)
        # Blank ones too, of which a few compressed bytes may be a billion.
        self._lines += max(chunk.count(b"\n"), chunk.count(b"\r"))
        if self._lines > MAX_ROWS + 1:
            raise ValueError(f"more than {MAX_ROWS} lines")
        buffer[: len(chunk)] = chunk
        return len(chunk)


def encoding_of(start: bytes) -> str:
    """UTF-16 if the first bytes of a text are, otherwise UTF-8 (of which a mark is skipped)."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    zeros = start[:2].find(b"\0") if len(start) > 1 else -1
    return ("utf-16-be", "utf-16-le", "utf-8-sig")[zeros]


def read_table(
    stream: BinaryIO,
    where: str,
    columns: Sequence[str],
    *,
    size: int,
    max_size: int,
    rename: Callable[[str], str] = str,
) -> Iterator[pd.DataFrame]:
    """Yield a CSV of `size` bytes in parts, as text; index n is line n + 2 of the file.

    The separator may be a comma, semicolon, tab or bar, the text UTF-8 or UTF-16. `rename` is
    applied to the names of the columns. Blank lines are rows of empty text. Raises UserError,
    naming `where`, for a table that is malformed, too large, or lacks one of `columns`.
    """
    with reading(where, f"a table with the columns {','.join(columns)}"):
        if size > max_size:
            raise ValueError(f"{size} bytes, at most {max_size} are read")
        try:
            lines = Lines(stream)
            parts = pd.read_csv(
                io.BufferedReader(lines, MAX_LINE),
                sep=lines.separator,
                encoding=lines.encoding,
                dtype=str,
                na_filter=False,
                skipinitialspace=True,
                skip_blank_lines=False,
                encoding_errors="replace",
                chunksize=ROWS_AT_ONCE,
            )
            for part in parts:
                found = list(part.columns.str.strip())
                part.columns = pd.Index([rename(name) for name in found])
                if missing := [name for name in columns if list(part.columns).count(name) != 1]:
                    raise ValueError(
                        f"line 1: no column {', '.join(missing)}, or several, in "
                        f"{quoted(lines.separator.join(found), 80)}"
                    )
                # pandas makes an index of the first fields if there are more than names.
                if not isinstance(part.index, pd.RangeIndex):
                    raise ValueError(f"line 2: more than {len(part.columns)} fields")
                yield part
        except pd.errors.ParserError as error:
            # pandas reports exhausted memory as an error of the table.
            if "out of memory" in str(error) or "Calling read" in str(error):
                raise MemoryError("reading a table") from error
            raise


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file; raises UserError, naming what was `expected`."""
    with reading(path, expected), path.open("rb") as file:
        text = file.read(MAX_JSON + 1)
        if len(text) > MAX_JSON:
            raise UserError(f"{path}: more than {MAX_JSON} bytes, expected {expected}")
        return json.loads(text)


def quoted(text: str, length: int = 40) -> str:
    """A word of a file, for an error message."""
    return repr(text if len(text) <= length else f"{text[: length - 3]}...")
