"""Errors that end as one line, and the guard around code that reads a user's file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

MAX_LINE = 2000  # characters of an error message


class UserError(Exception):
    """An error that the user can correct: one line naming what was found and what was expected."""

    def __init__(self, text: str) -> None:
        line = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
        super().__init__(line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}...")


class WriteError(UserError):
    """A file that could not be written, for the reason that `error` gives."""

    def __init__(self, path: Path | str, error: OSError) -> None:
        super().__init__(f"{path}: cannot be written ({error.strerror or error})")


class PeerLost(Exception):
    """Another process of the group has ended or cannot be reached."""


@contextmanager
def reading(path: Path | str, expected: str = "") -> Iterator[None]:
    """Turn any exception raised while `path` is read and used into one UserError that names it.

    Code that reads a user's file runs inside this block and needs no checks of its own.
    UserErrors pass unchanged; exhausted memory and lost processes are no fault of the file.
    """
    try:
        yield
    except (UserError, PeerLost):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if isinstance(error, FileNotFoundError):
            reason = "no such file"
        elif isinstance(error, OSError):
            reason = f"cannot be read ({error.strerror or error})"
        else:
            reason = describe_error(error)
        raise UserError(f"{path}: {reason}{expected and f'; expected {expected}'}") from error


def describe_error(error: BaseException) -> str:
    """The type of an exception and the first line of its text, of at most 200 characters."""
    name, lines = type(error).__name__, str(error).strip().splitlines()
    return f"{name}: {lines[0][:200]}" if lines else name


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was exhausted, of the device or the machine; torch reports it in many ways.

    Where it was while torch captures a graph or compiles, another error may be raised from it.
    """
    context = None if error.__suppress_context__ else error.__context__
    if context is not None and is_out_of_memory(context):
        return True
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
