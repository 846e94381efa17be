"""Every form of FER2013 gives the same pixels and labels."""

from __future__ import annotations

import random
import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from fer2013_files import (
    ARCHIVES,
    assert_same,
    folder_images,
    image_bytes,
    logged,
    read_set,
    small_set,
    table_rows,
    table_text,
    write_archive,
    write_folder,
    write_form,
)

from data.reading.sources import open_source
from data.sets import COUNTS, LabelledSets, load_set
from data.types import CLASSES, SPLITS

SMALL = small_set()


# --- tables


@pytest.mark.parametrize("rows_at_once", [5, 2048])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text + "\n\n",
        lambda text: text.rstrip("\n"),
        lambda text: re.sub(r",([\d ]+),", r',"\1",', text),
        lambda text: re.sub(r"(?m),(.*),(.*)$", r", \2,\1", text),
    ],
    ids=[
        "line ends",
        "byte order mark",
        "blank last lines",
        "no last line end",
        "quotes",
        "Kaggle",
    ],
)
def test_csv_variants(tmp_path, change, rows_at_once, monkeypatch):
    monkeypatch.setattr("data.reading.tables.ROWS_AT_ONCE", rows_at_once)
    text = table_text(table_rows(SMALL))
    assert change(text) != text
    (tmp_path / "fer2013.csv").write_bytes(change(text).encode())
    assert_same(read_set(tmp_path / "fer2013.csv"), SMALL)


# --- folders and archives


@pytest.mark.parametrize("form", ["folder", *ARCHIVES])
@pytest.mark.parametrize("top", ["", "./", "some/where/"])
def test_folder_of_classes(tmp_path, form, top):
    files = [(top + name, content) for name, content in folder_images(SMALL).items()]
    random.Random(3).shuffle(files)
    path = write_form(tmp_path, form, dict(files))
    assert_same(read_set(path), SMALL)


@pytest.mark.parametrize("suffix", ARCHIVES)
@pytest.mark.parametrize("name", ["fer2013/fer2013.csv", "icml_face_data.csv"])
def test_archived_table(tmp_path, suffix, name):
    text = table_text(table_rows(SMALL)).encode()
    files = {"README": b"x", "train.csv": b"emotion,pixels\n0,1\n", name: text, "z.bib": b"y"}
    assert_same(read_set(write_form(tmp_path, suffix, files)), SMALL)


@pytest.mark.parametrize("form", ["folder", ".zip", ".tar.gz"])
def test_other_files_are_skipped(tmp_path, form):
    files = folder_images(SMALL)
    image = next(iter(files.values()))
    names = (
        "angry/.DS_Store",
        "angry/._Training_100.png",
        "angry/Thumbs.db",
        "angry/x.npy",
        "sad/y.npy",
    )
    stray = {f"train/{name}": b"\0" for name in names}
    stray |= {"README.md": b"about", "__MACOSX/train/angry/Training_1.png": b"\0"}
    stray |= dict.fromkeys(("examples/happy.png", "train/montage.png", "x.png"), image)
    found = read_set(write_form(tmp_path, form, files | stray))
    assert_same(found, SMALL)
    (line,) = found.notes.tolist()
    assert set(line.removeprefix("left out: ").split(", ")) == {
        "1 .md files", "2 .npy files", "1 images in '.'", "1 images in 'examples'",
        "1 images in 'train'"
    }  # fmt: skip


def test_links_in_archives_are_skipped(tmp_path):
    files = folder_images(SMALL)
    path = write_form(tmp_path, ".tar", files)
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"train/angry/Training_9{kind.decode()}.png")
            link.type, link.linkname = kind, next(iter(files))
            archive.addfile(link)
    assert_same(read_set(path), SMALL)
    path = write_form(tmp_path, ".zip", files)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("train/angry/Training_9.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert_same(read_set(path), SMALL)


@pytest.mark.parametrize("form", ["folder", ".zip"])
def test_folder_is_sorted_by_number(form, tmp_path):
    pixels = image_bytes(np.zeros((48, 48), np.uint8))
    usages = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}
    files = {
        f"{part}/{name}/{usage}_{100 * turn + label}.png": pixels
        for usage, part in usages.items()
        for label, name in enumerate(CLASSES)
        for turn in (1, 2)
    }
    # One name in two class folders.
    files["train/sad/Training_100.png"] = image_bytes(np.full((48, 48), 7, np.uint8))
    found = read_set(write_form(tmp_path, form, files))
    assert found.labels.tolist() == [0, 4, *range(1, 7), *range(7), *[*range(7), *range(7)] * 2]
    assert np.nonzero(found.images.max(axis=(1, 2)))[0].tolist() == [1]


# --- load_set


def test_splits_are_rows_of_their_usage(tmp_path):
    order = random.Random(2).sample(range(len(SMALL.images)), len(SMALL.images))
    order += order[:2]  # repeated rows are kept, too
    rows = table_rows(SMALL)
    (tmp_path / "mixed.csv").write_text(table_text([rows[index] for index in order]))
    assert_same(read_set(tmp_path / "mixed.csv"), [array[order] for array in SMALL[:3]])
    splits = load_set(tmp_path / "mixed.csv").splits
    assert tuple(splits) == SPLITS
    for index, found in enumerate(splits.values()):
        kept = [row for row in order if SMALL.usage[row] == index]
        assert found.images.dtype == torch.uint8
        assert found.labels.dtype == torch.int64
        assert torch.equal(found.images, torch.tensor(SMALL.images[kept])[:, None])
        assert torch.equal(found.labels, torch.tensor(SMALL.labels[kept]).long())


def test_other_counts_are_logged(tmp_path):
    assert [sum(COUNTS[split]) for split in SPLITS] == [28709, 3589, 3589]
    (tmp_path / "fer2013.csv").write_text(table_text(table_rows(SMALL)))
    with logged() as lines:
        load_set(tmp_path)
    (line,) = [line for line in lines if "counts differ" in line]
    assert line.startswith(f"{tmp_path}/fer2013.csv: ")
    assert "Training angry 2 instead of 3995" in line
    assert "PrivateTest neutral 2 instead of 626" in line


def test_search_order_in_a_folder(tmp_path):
    text = table_text(table_rows(SMALL)).encode()
    write_folder(tmp_path, {"fer2013.csv": text, "icml_face_data.csv": text})
    archives = [f"fer2013_b{suffix}" for suffix in sorted(ARCHIVES)]
    for name in archives:
        write_archive(tmp_path / name, {"fer2013.csv": text})
    write_folder(tmp_path / "fer2013_images", folder_images(SMALL))
    strays = ("fer2013new.csv", "fer2013.csv.cache.npz", "fer2013.zip.cache.npz")
    write_folder(tmp_path, dict.fromkeys(strays, b"no set"))
    (tmp_path / "fer2013_empty").mkdir()
    for name in ("fer2013.csv", "icml_face_data.csv", *archives, "fer2013_images"):
        source = tmp_path / name
        for path in (tmp_path, source):
            with open_source(path, LabelledSets()) as opened:
                assert opened.path == source
        source.rename(tmp_path.parent / f"{tmp_path.name}-{name}")


def test_synthetic_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load_set("synthetic")
    assert tuple(found.splits) == SPLITS
    assert list(tmp_path.iterdir()) == []
