"""Untrusted files: how much one may unpack to, and its words in error messages."""

from __future__ import annotations

MAX_UNPACKED = 1 << 31  # bytes; FER2013's table takes a seventh
# Bytes that every compressed file may hold, and how many times its size; images shrink to a half.
MAX_SMALL, MAX_RATIO = 1 << 26, 100


def check_unpacked(position: int, size: int) -> None:
    """Raise ValueError where a file of `size` bytes may not unpack to `position` bytes."""
    limit = min(MAX_UNPACKED, max(MAX_SMALL, MAX_RATIO * size))
    if position > limit:
        raise ValueError(f"unpacked {position} bytes, at most {limit} are read")


def quoted(text: str, length: int = 40) -> str:
    """A word of a file, for an error message."""
    return repr(text if len(text) <= length else f"{text[: length - 3]}...")
