"""What the command prints: lines at once, and a progress bar where there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")


def printable(text: str) -> str:
    """A text on one line: quoted where it holds line breaks and the like."""
    return text if text.isprintable() else repr(text)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line at once, above the progress bar if there is one."""
    file = file or sys.stdout
    bars = sys.modules.get("tqdm")
    if bars:
        bars.tqdm.write(line, file=file)
    else:
        print(line, file=file, flush=True)


def progress(items: Iterable[Item], total: int | None) -> Iterator[Item]:
    """`items`, with a progress bar on a terminal where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return iter(items)
    return iter(tqdm(items, total=total, disable=None, leave=False))
