"""Whether a parser holds against a stranger's input.

A parser holds when it gives a value or one UserError of a printable line, soon, and nothing is
written, started or fetched meanwhile.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

from benchmarks.hostile_inputs import MARKER
from utils import UserError

SLOW = 20.0  # seconds after which an input counts as not held; others take milliseconds


class Parser(NamedTuple):
    """Something that reads files: the file's name, its hostile inputs, and how they are read."""

    file: str
    inputs: Callable[[], SearchStrategy[Any]]
    read: Callable[[Path], Any]
    write: Callable[[Path, Any], Any] = Path.write_bytes


@dataclass
class Tally:
    """How many inputs were tried, and of each that did not hold why, with the input."""

    tried: int = 0
    failures: list[tuple[str, Any]] = field(default_factory=list)


# ---------------------------------------------------------------- what must not happen meanwhile

_watched: list[str] | None = None
_CHANGES = ("os.", "shutil.", "subprocess.", "socket.connect", "urllib.", "webbrowser.", "ftplib.")
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event == "open":
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        # Modules that are imported late may be compiled to disk.
        if writes and "__pycache__" not in str(path):
            _watched.append(f"open {path!r} to write")
    elif event.startswith(_CHANGES) and event not in _HARMLESS:
        _watched.append(f"{event} {arguments!r}"[:200])


@contextmanager
def watching() -> Iterator[list[str]]:
    """The list of what the process writes, starts or fetches in the block."""
    global _watched
    if not getattr(_audit, "added", False):
        sys.addaudithook(_audit)  # which cannot be taken back, but is idle outside the block
        _audit.added = True
    _watched = seen = []
    try:
        yield seen
    finally:
        _watched = None


@contextmanager
def unwatched() -> Iterator[None]:
    """Within `watching`, a block that may do what it does."""
    global _watched
    seen, _watched = _watched, None
    try:
        yield
    finally:
        _watched = seen


def fault_of(parser: Parser, value: Any, folder: Path) -> str | None:
    """Read `value` in the empty `folder` as `parser` does; None when it holds, else why not."""
    path, before = folder / parser.file, os.getcwd()
    parser.write(path, value)
    started, reason = time.monotonic(), None
    os.chdir(folder)
    try:
        with watching() as seen:
            parser.read(path)
    except UserError as error:
        if not str(error).isprintable():
            reason = f"an error of more than a line: {error}"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:300]
    finally:
        os.chdir(before)
    if seen or (folder / MARKER).exists():
        reason = f"it did more than read: {seen[:3]}"
    elif time.monotonic() - started > SLOW:
        reason = f"{time.monotonic() - started:.0f} s"
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return reason


def try_inputs(parser: Parser, count: int, seed: int) -> Tally:
    """Give `parser` about `count` generated inputs, the same for the same `seed`."""
    tally = Tally()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(parser.inputs())
    def each(value: Any) -> None:
        tally.tried += 1
        reason = fault_of(parser, value, Path(folder))
        if reason is not None:
            tally.failures.append((reason, value))

    with tempfile.TemporaryDirectory() as folder:
        each()
    return tally
