"""The cache of a set that was read: one array file beside the source."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.reading.sources import Source, time_mark
from data.types import SIDE, Arrays
from runtime.errors import UserError
from runtime.files import atomic_write, open_regular
from runtime.logs import LOGGER_NAME
from runtime.processes import rank_zero_first

FORMAT = "set-cache/4"


def cache_path(source: Path) -> Path:
    """The path of the cache of `source`: `<source name>.cache.npz` in the same folder."""
    # A link to another folder is cached beside the link.
    source = Path(os.path.abspath(source))
    return source.with_name(source.name + ".cache.npz")


def read_cached(source: Source, read: Callable[[Source], Arrays]) -> Arrays:
    """The arrays of a set from its cache, or by `read`, writing the cache.

    A cache that is missing, unreadable or of another state of the source is rebuilt. If it cannot
    be written, that is only logged. The first of several processes reads before the others, which
    then find the cache.
    """
    log = logging.getLogger(LOGGER_NAME).info
    path = cache_path(source.path)
    with rank_zero_first():
        # Before reading: if the source changes meanwhile, the cache will not match the next time.
        mark = fingerprint(source)
        if path.exists():
            try:
                return _load(path, mark)
            except Exception as error:  # numpy and zipfile raise many kinds for broken files
                log(f"{path}: rebuilt ({' '.join(str(error).split()) or type(error).__name__})")
        arrays = read(source)
        try:
            content = io.BytesIO()  # zipfile complains of an archive that a full disk has left open
            np.savez(content, fingerprint=mark, **arrays._asdict())
            atomic_write(path, lambda file: file.write(content.getbuffer()))
            log(f"{path}: cache written")
        except UserError as error:
            log(f"cache could not be written: {error}")
        return arrays


def fingerprint(source: Source) -> str:
    """A text that changes with the sizes and times of the files of the source."""
    if source.archive:
        status = source.path.stat()
        return f"{FORMAT} file {status.st_size} {time_mark(status)}"
    used = (entry for entry in source.entries if entry.is_image() or entry.is_table())
    lines = (f"{entry.path}\0{entry.size}\0{entry.time}\n" for entry in used)
    digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{FORMAT} files {digest}"


def _load(path: Path, mark: str) -> Arrays:
    # zipfile compares the check sums.
    with open_regular(path) as stream, np.load(stream, allow_pickle=False) as file:
        if str(file["fingerprint"]) != mark:
            raise ValueError("the source has changed")
        arrays = Arrays(*(file[name] for name in Arrays._fields))
    count = len(arrays.labels)
    if arrays.images.shape != (count, SIDE, SIDE) or arrays.usage.shape != (count,):
        raise ValueError("not the arrays of a set")
    return arrays
