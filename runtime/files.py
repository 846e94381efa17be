"""Files that are written whole or not at all, and folders for them."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from runtime.errors import UserError, WriteError
from runtime.processes import rank

TEMPORARY = ".unfinished.tmp"  # the suffix of a file until it is complete


def atomic_write(path: Path | str, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` on a temporary file beside `path`, then replace `path` by it.

    The file is flushed and fsynced first, so that a killed process leaves the old file or the new
    one. Only the first process writes. Raises WriteError; the old file is then unchanged.
    """
    if rank() > 0:
        return
    path = Path(path)
    # Named first, so that it is removed even if its creation is interrupted.
    temporary = path.parent / f"{path.name}{secrets.token_hex(4)}{TEMPORARY}"
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file to read bytes; OSError for a FIFO or a device, which might never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "not a regular file")
    return open(path, "rb")


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text, names of files that are not as \\udcff; errors as `atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows of plain values as CSV, columns in order of first appearance."""
    # dtype: integers of a column with gaps stay integers.
    table = pd.DataFrame(list(rows), dtype=object)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def make_folder(flag: str, name: str) -> Path:
    """The folder that `flag` names, created where it is missing; UserError where that fails."""
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {name}: {error.strerror}, expected a folder") from error
    return Path(name)
