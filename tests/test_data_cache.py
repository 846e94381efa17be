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
    folder_images,
    image_bytes,
    logged,
    small_set,
    table_rows,
    table_text,
    write_archive,
    write_folder,
)

from data.cache import cache_path, read_cached

SMALL = small_set(each=1)
OTHER = small_set(each=1, seed=1)
FORMS = ["table", "folder", "archive"]


def write_source(folder, form, arrays=SMALL):
    if form == "table":
        path = folder / "fer2013.csv"
        path.write_text(table_text(table_rows(arrays)))
        return path
    if form == "folder":
        return write_folder(folder / "fer2013", folder_images(arrays))
    return write_archive(folder / "fer2013.tar.gz", folder_images(arrays))


def read(source):
    """The arrays, and the lines logged."""
    with logged() as lines:
        return read_cached(source), lines


def assert_same(found, expected):
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def forbid_source(monkeypatch):
    """Call it to make every read of a source fail from then on."""

    def refuse(source):
        raise AssertionError("the source was read")

    return lambda: monkeypatch.setattr("data.cache.read_set", refuse)


@pytest.mark.parametrize("form", FORMS)
def test_second_read_uses_cache(tmp_path, form, forbid_source):
    source = write_source(tmp_path, form)
    found, lines = read(source)
    assert_same(found, SMALL)
    cache = tmp_path / f"{source.name}.cache.npz"
    assert lines == [f"{cache}: cache written"]
    assert sorted(tmp_path.iterdir()) == sorted([source, cache])
    if form == "folder":  # no part of the set
        (source / "train" / "angry" / ".DS_Store").write_bytes(b"\0")
    forbid_source()
    found, lines = read(source)
    assert_same(found, SMALL)
    assert lines == []


@pytest.mark.parametrize("form", FORMS)
def test_changed_source_is_read_again(tmp_path, form):
    source = write_source(tmp_path, form)
    read(source)
    write_source(tmp_path, form, OTHER)
    found, lines = read(source)
    assert_same(found, OTHER)
    assert "rebuilt (the source has changed)" in lines[0]
    assert "cache written" in lines[1]


def test_changed_time_alone_is_noticed(tmp_path):
    source = write_source(tmp_path, "table")
    text = source.read_text()
    read(source)
    source.write_text(text.replace("\n0,", "\n1,", 1))
    os.utime(source, ns=(0, source.stat().st_mtime_ns + 1))
    assert source.stat().st_size == len(text)
    assert read(source)[0].labels[0] == 1


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
    with np.load(cache) as file:
        arrays = dict(file)

    def save(**changes):
        with cache.open("wb") as file:
            np.savez(file, **(arrays | changes))

    yield from (
        lambda end=end: cache.write_bytes(whole[:end]) for end in (0, 1, 999, len(whole) - 1)
    )
    middle = len(whole) // 2
    yield lambda: cache.write_bytes(whole[:middle] + b"damage" + whole[middle + 6 :])
    yield lambda: cache.write_bytes(b"no archive")
    yield lambda: save(images=arrays["images"][:-1])
    yield lambda: save(images=arrays["images"].astype(np.float32))
    yield lambda: save(images=np.array([None, {}], object))
    yield lambda: save(labels=arrays["labels"] + np.uint8(1))
    yield lambda: save(classes=arrays["classes"][:6])
    yield lambda: save(notes=np.array([1]))
    yield lambda: save(usage=arrays["usage"] + np.uint8(1))
    yield lambda: save(**{name: arrays[name][:0] for name in ("images", "labels", "usage")})
    yield lambda: save(fingerprint="set-cache/0 file 1 1")
    yield lambda: np.savez(cache.open("wb"), fingerprint=arrays["fingerprint"])
    yield lambda: np.savez_compressed(cache.open("wb"), **arrays)


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


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import data.cache

def save(file, **arrays):
    file.write(b"PK" + bytes(100_000))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

np.savez = save
data.cache.read_cached(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("before", [False, True], ids=["no cache before", "a cache before"])
def test_killed_writer_leaves_old_cache_or_none(tmp_path, before):
    source = write_source(tmp_path, "table")
    cache = cache_path(source)
    if before:
        read(source)
        old = cache.read_bytes()
        write_source(tmp_path, "table", OTHER)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", KILLED, source], cwd=root, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert cache.read_bytes() == old if before else not cache.exists()
    assert_same(read(source)[0], OTHER if before else SMALL)


def test_unwritable_cache_is_logged(tmp_path):
    source = write_source(tmp_path, "table")
    (cache_path(source) / "in the way").mkdir(parents=True)
    for _ in range(2):
        found, lines = read(source)
        assert_same(found, SMALL)
        assert lines[-1].startswith("cache could not be written: ")
        assert str(cache_path(source)) in lines[-1]
    assert sorted(tmp_path.iterdir()) == [source, cache_path(source)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    source = write_source(tmp_path, "table")
    tmp_path.chmod(0o500)
    try:
        found, lines = read(source)
    finally:
        tmp_path.chmod(0o700)
    assert_same(found, SMALL)
    assert lines[-1].startswith("cache could not be written: ")
    assert list(tmp_path.iterdir()) == [source]


def test_full_disk(tmp_path, monkeypatch):
    source = write_source(tmp_path, "table")

    def full(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    found, lines = read(source)
    assert_same(found, SMALL)
    assert lines == [
        f"cache could not be written: {cache_path(source)}: cannot be written "
        "(No space left on device)"
    ]
    assert list(tmp_path.iterdir()) == [source]


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
