"""The cache of a set that was read: one array file beside the source."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common import ranks
from data.readers import CLASSES, SIDE, SPLITS, Arrays, folder_files, read_set
from utils import UserError, atomic_write

FORMAT = "fer2013-cache/2"


def cache_path(source: Path) -> Path:
    """Where the cache of `source` lies: `<source name>.cache.npz` in the same folder."""
    # A link to a set far away is cached beside the link.
    source = Path(os.path.abspath(source))
    return source.with_name(source.name + ".cache.npz")


def read_cached(source: Path, report: Callable[[str], None]) -> Arrays:
    """Read the set at `source` from its cache, or from the source, writing the cache.

    A cache that is missing, unreadable or made from another state of the source is rebuilt. A
    folder that cannot be written costs the cache only: `report` says so. The first of several
    ranks reads before the others, for whom it leaves the cache. Raises UserError as
    `data.readers.read_set` does.
    """
    with ranks.first_alone():
        return _read_cached(source, report)


def _read_cached(source: Path, report: Callable[[str], None]) -> Arrays:
    path = cache_path(source)
    # Taken before the read: a source that changes meanwhile does not match at the next start.
    mark = fingerprint(source)
    if path.exists():
        try:
            return _load(path, mark)
        except MemoryError:  # no fault of the cache
            raise
        except Exception as error:  # numpy and zipfile raise many kinds for broken files
            report(f"{path}: rebuilt ({' '.join(str(error).split()) or type(error).__name__})")
    arrays = read_set(source, report)
    try:
        atomic_write(path, lambda file: np.savez(file, fingerprint=mark, **arrays._asdict()))
        report(f"{path}: cache written")
    except UserError as error:
        report(f"cache could not be written: {error}")
    return arrays


def fingerprint(source: Path) -> str:
    """What tells this state of the source from another: sizes and times, not contents."""
    if source.is_dir():
        lines = (f"{name}\0{size}\0{time}\n" for name, size, time in folder_files(source))
        digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        return f"{FORMAT} folder {digest}"
    status = source.stat()
    return f"{FORMAT} file {status.st_size} {status.st_mtime_ns}"


def _load(path: Path, mark: str) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            # It could unpack to anything.
            raise ValueError("compressed")
    with np.load(path, allow_pickle=False) as file:
        if str(file["fingerprint"]) != mark:
            raise ValueError("the source has changed")
        arrays = Arrays(*(file[name] for name in Arrays._fields))
    images, labels, usage = arrays
    if (
        any(array.dtype != np.uint8 for array in arrays)
        or images.shape != (len(images), SIDE, SIDE)
        or not labels.shape == usage.shape == (len(images),)
        or labels.max() >= len(CLASSES)
        or usage.max() >= len(SPLITS)
    ):
        raise ValueError("not the arrays of a set")
    return arrays
