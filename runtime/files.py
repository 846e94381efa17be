"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from runtime.errors import WriteError
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
    temporary = path.with_name(f"{path.name}{secrets.token_hex(4)}{TEMPORARY}")
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


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text; errors as `atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode()))


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows of plain values as CSV, columns in order of first appearance."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
