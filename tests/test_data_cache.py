"""The cache of FER2013: valid, rebuilt when the source changes, written atomically, optional."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fer2013_files import (
    assert_same,
    folder_images,
    image_bytes,
    logged,
    small_set,
    table_rows,
    table_text,
    write_folder,
    write_form,
)
from runs import ROOT

from data.reading.cache import cache_path, read_cached
from data.reading.sources import open_source
from data.sets import LabelledSets, read_set

SMALL = small_set(each=1)
OTHER = small_set(each=1, seed=1)


def write_source(folder, form, arrays=SMALL):
    if form != "table":
        return write_form(folder, form, folder_images(arrays))
    path = folder / "fer2013.csv"
    path.write_text(table_text(table_rows(arrays)))
    return path


def read(source, read_source=read_set):
    """The arrays, and the lines logged."""
    with logged() as lines, open_source(source, LabelledSets()) as opened:
        return read_cached(opened, read_source), lines


@pytest.mark.parametrize("form", ["table", "folder", ".tar.gz"])
def test_cache_is_used_until_the_source_changes(tmp_path, form):
    source = write_source(tmp_path, form)
    found, lines = read(source)
    assert_same(found, SMALL)
    cache = tmp_path / f"{source.name}.cache.npz"
    assert lines == [f"{cache}: cache written"]
    assert sorted(tmp_path.iterdir()) == sorted([source, cache])
    if form == "folder":  # no part of the set
        (source / "train" / "angry" / ".DS_Store").write_bytes(b"\0")
    found, lines = read(source, None)
    assert_same(found, SMALL)
    assert lines == []
    write_source(tmp_path, form, OTHER)
    found, lines = read(source)
    assert_same(found, OTHER)
    assert "rebuilt (the source has changed)" in lines[0]
    assert "cache written" in lines[1]


@pytest.mark.parametrize("form", ["table", "folder", ".tar"])
def test_change_is_noticed_though_size_and_time_are_as_before(tmp_path, form):
    def write(arrays):
        names = folder_images(arrays)
        # All of one size, whatever they show.
        images = [image_bytes(image, "BMP") for image in arrays.images]
        return write_form(tmp_path, form, dict(zip(names, images, strict=True)))

    source = write_source(tmp_path, form) if form == "table" else write(SMALL)
    read(source)
    before = {path: path.stat() for path in (source, *source.rglob("*")) if path.is_file()}
    if form == "table":
        source.write_text(source.read_text().replace("\n0,", "\n1,", 1))
    else:
        write(OTHER)
    for path, status in before.items():
        os.utime(path, ns=(0, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size
    found, lines = read(source)
    assert "rebuilt (the source has changed)" in lines[0]
    assert found.labels[0] == 1 if form == "table" else (found.images == OTHER.images).all()


@pytest.mark.parametrize(
    "change, expected", [("added", (0, 1)), ("removed", (-1, 0)), ("renamed", (-1, 1))]
)
def test_changed_files_of_a_folder_are_noticed(tmp_path, change, expected):
    source = write_source(tmp_path, "folder")
    read(source)
    first = source / "train/angry/Training_100.png"
    if change == "added":
        write_folder(source, {"train/sad/Training_1.png": image_bytes(SMALL.images[0])})
    elif change == "removed":
        first.unlink()
    else:
        first.rename(source / "train/sad/Training_100.png")
    counts = np.bincount(read(source)[0].labels, minlength=7) - np.bincount(SMALL.labels)
    assert (counts[0], counts[4]) == expected


def broken_caches(cache):
    """Functions that each break the cache in another way."""
    whole = cache.read_bytes()
    middle = len(whole) // 2
    for content in (
        *(whole[:end] for end in (0, 1, 999, len(whole) - 1)),
        whole[:middle] + b"damage" + whole[middle + 6 :],
        b"no archive",
    ):
        yield lambda content=content: cache.write_bytes(content)
    with np.load(cache) as file:
        arrays = dict(file)
    for changes in (
        {"images": arrays["images"][:-1]},
        {"fingerprint": "set-cache/0 file 1 1"},
    ):
        yield lambda changes=changes: np.savez(cache.open("wb"), **(arrays | changes))
    yield lambda: np.savez(cache.open("wb"), fingerprint=arrays["fingerprint"])
    # A header that claims more than any memory.
    shape = str(arrays["images"].shape).encode()
    for claimed in (b"(9" + b"9" * 15 + b", 48, 48)", b"(999999999, 48, 48)", b"(1, 48, 48)"):
        header = shape + b", }" + b" " * 20
        yield lambda claimed=claimed, header=header: cache.write_bytes(
            whole.replace(header, (claimed + b", }").ljust(len(header)))
        )


def test_broken_cache_is_rebuilt(tmp_path):
    source = write_source(tmp_path, "table")
    read(source)
    cache = cache_path(source)
    whole = cache.read_bytes()
    for number, breaks in enumerate(broken_caches(cache)):
        breaks()
        assert cache.read_bytes() != whole, number
        found, lines = read(source)
        assert_same(found, SMALL)
        assert len(lines) == 2, number
        assert "rebuilt (" in lines[0], number
        assert all(line.isprintable() for line in lines)
        assert read(source)[1] == [], number
    assert zipfile.ZipFile(cache).testzip() is None


def test_cache_that_is_a_fifo_is_rebuilt(tmp_path):
    source = write_source(tmp_path, "table")
    os.mkfifo(cache_path(source))
    found, lines = read(source)
    assert_same(found, SMALL)
    assert "rebuilt ([Errno 22] not a regular file)" in lines[0]
    assert cache_path(source).is_file()


def test_exhausted_memory_leaves_the_cache(tmp_path, monkeypatch):
    def exhausted(*_args, **_kwargs):
        raise MemoryError

    source = write_source(tmp_path, "table")
    read(source)
    before = cache_path(source).stat().st_mtime_ns
    monkeypatch.setattr("numpy.load", exhausted)
    with pytest.raises(MemoryError):
        read(source, exhausted)
    assert cache_path(source).stat().st_mtime_ns == before


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from data.sets import load_set

def save(file, **arrays):
    file.write(b"PK" + bytes(100_000))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

np.savez = save
load_set(Path(sys.argv[1]))
"""


def test_killed_writer_leaves_the_old_cache(tmp_path):
    source = write_source(tmp_path, "table")
    read(source)
    old = cache_path(source).read_bytes()
    write_source(tmp_path, "table", OTHER)
    done = subprocess.run([sys.executable, "-c", KILLED, source], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert cache_path(source).read_bytes() == old
    assert_same(read(source)[0], OTHER)


def test_unwritable_cache_is_logged(tmp_path, monkeypatch):
    source = write_source(tmp_path, "table")
    said = f"cache could not be written: {cache_path(source)}"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        found, lines = read(source)
    assert_same(found, SMALL)
    assert lines == [f"{said}: cannot be written (No space left on device)"]
    assert list(tmp_path.iterdir()) == [source]
    (cache_path(source) / "in the way").mkdir(parents=True)
    for _ in range(2):
        found, lines = read(source)
        assert_same(found, SMALL)
        assert lines[-1].startswith(said)
    assert sorted(tmp_path.iterdir()) == [source, cache_path(source)]


def test_cache_is_beside_a_link_or_relative_folder(tmp_path, monkeypatch):
    for name in ("far", "near"):
        (tmp_path / name).mkdir()
    source = write_source(tmp_path / "far", "folder")
    link = tmp_path / "near" / "fer2013"
    link.symlink_to(source)
    assert_same(read(link)[0], SMALL)
    assert list((tmp_path / "far").iterdir()) == [source]
    assert cache_path(link) == tmp_path / "near" / "fer2013.cache.npz"
    assert cache_path(link).exists()
    monkeypatch.chdir(source)
    assert_same(read(Path("."))[0], SMALL)
    assert sorted((tmp_path / "far").iterdir()) == [source, cache_path(source)]
