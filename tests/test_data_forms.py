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
    folder_images,
    image_bytes,
    logged,
    small_set,
    table_rows,
    table_text,
    write_archive,
    write_folder,
)

from data.readers import SOUGHT, read_set
from data.sets import COUNTS, load_set
from data.sources import find_source
from data.types import CLASSES, SPLITS

ARCHIVES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz"]
SMALL = small_set()


def assert_same(found, expected):
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def shuffled(files):
    names = list(files)
    random.Random(3).shuffle(names)
    return {name: files[name] for name in names}


def write(tmp_path, form, files):
    if form == "folder":
        return write_folder(tmp_path / "fer2013", files)
    return write_archive(tmp_path / f"fer2013{form}", files)


# --- tables


def test_csv_row_order_is_kept(tmp_path):
    rows = table_rows(SMALL)
    order = random.Random(1).sample(range(len(rows)), len(rows))
    order += order[:2]  # repeated rows are kept, too
    (tmp_path / "fer2013.csv").write_text(table_text([rows[index] for index in order]))
    assert_same(read_set(tmp_path / "fer2013.csv"), [array[order] for array in SMALL[:3]])


def test_columns_of_the_challenge(tmp_path):
    rows = [f"{emotion},{usage},{pixels}" for emotion, pixels, usage in table_rows(SMALL)]
    path = tmp_path / "icml_face_data.csv"
    path.write_text("\n".join(["emotion, Usage, pixels", *rows]) + "\n")
    assert_same(read_set(path), SMALL)


@pytest.mark.parametrize("rows_at_once", [5, 2048])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text + "\n\n",
        lambda text: text.rstrip("\n"),
        lambda text: re.sub(r",([\d ]+),", r',"\1",', text),
    ],
    ids=["windows line ends", "byte order mark", "blank last lines", "no last line end", "quotes"],
)
def test_csv_variants(tmp_path, change, rows_at_once, monkeypatch):
    monkeypatch.setattr("data.bounded.ROWS_AT_ONCE", rows_at_once)
    text = table_text(table_rows(SMALL))
    assert change(text) != text
    (tmp_path / "fer2013.csv").write_bytes(change(text).encode())
    assert_same(read_set(tmp_path / "fer2013.csv"), SMALL)


# --- folders and archives


def test_folder(tmp_path):
    assert_same(read_set(write(tmp_path, "folder", shuffled(folder_images(SMALL)))), SMALL)


@pytest.mark.parametrize("suffix", ARCHIVES)
@pytest.mark.parametrize("top", ["", "fer2013/", "./", "some/where/"])
def test_archived_folder(tmp_path, suffix, top):
    files = {top + name: content for name, content in folder_images(SMALL).items()}
    assert_same(read_set(write(tmp_path, suffix, shuffled(files))), SMALL)


@pytest.mark.parametrize("suffix", ARCHIVES)
@pytest.mark.parametrize("name", ["fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv"])
def test_archived_table(tmp_path, suffix, name):
    text = table_text(table_rows(SMALL)).encode()
    files = {"README": b"x", "train.csv": b"emotion,pixels\n0,1\n", name: text, "z.bib": b"y"}
    assert_same(read_set(write(tmp_path, suffix, files)), SMALL)


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_jpegs_decode_alike(tmp_path, suffix):
    files = folder_images(SMALL, "JPEG")
    found = read_set(write(tmp_path, suffix, files))
    assert_same(found, read_set(write(tmp_path, "folder", files)))
    assert np.abs(found.images.astype(int) - SMALL.images).mean() < 20


def test_colour_images_become_gray(tmp_path):
    files = folder_images(SMALL)
    first = next(iter(files))
    files[first] = image_bytes(np.repeat(SMALL.images[0][..., None], 3, axis=2))
    assert_same(read_set(write(tmp_path, "folder", files)), SMALL)


@pytest.mark.parametrize("form", ["folder", ".zip", ".tar.gz"])
def test_other_files_are_skipped(tmp_path, form):
    files = folder_images(SMALL)
    image = next(iter(files.values()))
    stray = {
        "README.md": b"about",
        "train/angry/.DS_Store": b"\0",
        "train/angry/._Training_100.png": b"\0",
        "train/angry/Thumbs.db": b"\0",
        "train/angry/Training_100.npy": b"",
        "__MACOSX/train/angry/Training_1.png": b"\0",
        "examples/happy.png": image,
        "train/montage.png": image,
    }
    path = write(tmp_path, form, files | stray)
    found = read_set(path)
    assert_same(found, SMALL)
    (line,) = found.notes.tolist()
    assert line.startswith("left out: 1 ")
    assert set(line.partition("left out: ")[2].split(", ")) == {
        "1 .md files", "1 .npy files", "1 images in 'examples'", "1 images in 'train'"
    }  # fmt: skip


def test_links_in_archives_are_skipped(tmp_path):
    files = folder_images(SMALL)
    path = write(tmp_path, ".tar", files)
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"train/angry/Training_9{kind.decode()}.png")
            link.type, link.linkname = kind, next(iter(files))
            archive.addfile(link)
    assert_same(read_set(path), SMALL)
    path = write(tmp_path, ".zip", files)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("train/angry/Training_9.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert_same(read_set(path), SMALL)


def test_one_name_in_two_class_folders(tmp_path):
    files = folder_images(SMALL)
    files["train/sad/Training_100.png"] = image_bytes(np.full((48, 48), 7, np.uint8))
    found = read_set(write(tmp_path, "folder", files))
    assert len(found.images) == len(SMALL.images) + 1
    assert found.labels[found.images.min(axis=(1, 2)) == 7].tolist() == [CLASSES.index("sad")]


@pytest.mark.parametrize("form", ["folder", ".zip"])
def test_folder_is_sorted_by_file_name(form, tmp_path):
    pixels = image_bytes(np.zeros((48, 48), np.uint8))
    usages = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}
    files = {
        f"{part}/{name}/{usage}_{100 * turn + label}.png": pixels
        for usage, part in usages.items()
        for label, name in enumerate(CLASSES)
        for turn in (1, 2)
    }
    assert read_set(write(tmp_path, form, files)).labels.tolist() == [*range(7), *range(7)] * 3


# --- load_set


def test_splits_are_rows_of_their_usage(tmp_path):
    order = random.Random(2).sample(range(len(SMALL.images)), len(SMALL.images))
    rows = table_rows(SMALL)
    (tmp_path / "mixed.csv").write_text(table_text([rows[index] for index in order]))
    write_folder(tmp_path / "sorted", folder_images(SMALL))
    mixed, together = (load_set(tmp_path / name).splits for name in ("mixed.csv", "sorted"))
    assert tuple(mixed) == tuple(together) == SPLITS
    for index, split in enumerate(SPLITS):
        kept = [row for row in order if SMALL.usage[row] == index]
        for found, rows in ((mixed[split], kept), (together[split], sorted(kept))):
            assert found.images.dtype == torch.uint8
            assert found.labels.dtype == torch.int64
            assert found.true_labels is None
            assert torch.equal(found.images, torch.tensor(SMALL.images[rows])[:, None])
            assert torch.equal(found.labels, torch.tensor(SMALL.labels[rows]).long())


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
    text = table_text(table_rows(SMALL))
    sources = [tmp_path / "fer2013.csv", tmp_path / "icml_face_data.csv"]
    sources += [tmp_path / f"fer2013_b{suffix}" for suffix in sorted(ARCHIVES)]
    for path in sources[:2]:
        path.write_text(text)
    for path in sources[2:]:
        write_archive(path, {"fer2013.csv": text.encode()})
    sources.append(write_folder(tmp_path / "fer2013_images", folder_images(SMALL)))
    for name in ("fer2013new.csv", "fer2013.csv.cache.npz", "fer2013.zip.cache.npz"):
        (tmp_path / name).write_bytes(b"no set")
    (tmp_path / "fer2013_empty").mkdir()
    for source in sources:
        assert find_source(tmp_path, SOUGHT) == source
        assert find_source(source, SOUGHT) == source
        source.rename(tmp_path / "gone")
        (tmp_path / "gone").rename(tmp_path.parent / f"{tmp_path.name}-{source.name}")


def test_table_in_folder_named_fer2013(tmp_path):
    (tmp_path / "fer2013").mkdir()
    (tmp_path / "fer2013" / "fer2013.csv").write_text("")
    assert find_source(tmp_path, SOUGHT) == tmp_path / "fer2013" / "fer2013.csv"


def test_synthetic_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = load_set("synthetic").splits
    assert tuple(splits) == SPLITS
    assert splits["Training"].true_labels is not None
    assert list(tmp_path.iterdir()) == []
