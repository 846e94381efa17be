"""A malformed FER2013 gives a one-line error: the file, the place, what was expected."""

from __future__ import annotations

import struct
import tarfile
import zlib

import numpy as np
import pytest
from fer2013_files import (
    ARCHIVES,
    assert_same,
    folder_images,
    image_bytes,
    read_set,
    refused,
    small_set,
    table_rows,
    table_text,
    write_archive,
    write_form,
)

from data.reading.cache import cache_path
from data.sets import load_set

SMALL = small_set(each=1)
PIXELS = " ".join(["7"] * 2304)


def refusal(path):
    """The one line of the error, which must leave no cache."""
    text = refused(load_set, path)
    assert not cache_path(path).exists()
    return text


# --- tables


@pytest.mark.parametrize(
    "field, value, found",
    [
        ("pixels", PIXELS[2:], "size 2303 into shape (48,48); expected 2304 whole numbers of 0 to"),
        ("pixels", "", "expected 2304 whole"),
        ("pixels", PIXELS[:-1] + "256", "pixels of 7 to 256; expected 2304 whole"),
        ("pixels", PIXELS[:-1] + "-1", "pixels of -1 to 7; "),
        ("pixels", PIXELS[:-1] + "1.5", "expected 2304 whole"),
        ("pixels", PIXELS[:-1] + "9" * 6000, "expected 2304 whole"),
        ("emotion", "8", "emotion '8', expected a class of 0 to 6"),
        ("emotion", "", "emotion '', "),
        ("usage", "Rest", "Usage 'Rest', expected Training, PublicTest, PrivateTest"),
        ("usage", "Training,9", "Expected 3 fields in line 5, saw 4"),
    ],
)
def test_bad_row_is_named_by_line(tmp_path, field, value, found):
    row = {"emotion": "3", "pixels": PIXELS, "usage": "Training"}
    rows = table_rows(SMALL)
    rows.insert(3, list((row | {field: value}).values()))
    path = tmp_path / "fer2013.csv"
    path.write_text(table_text(rows))
    text = refusal(path)
    assert text.startswith(str(path))
    assert "line 5" in text
    assert found in text


def test_lines_are_counted_across_parts_and_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("data.reading.tables.ROWS_AT_ONCE", 4)
    lines = table_text(table_rows(SMALL)).splitlines()
    lines[9] = ""
    lines[17] = f"8,{PIXELS},Training"
    (tmp_path / "fer2013.csv").write_text("\n".join(lines))
    assert "fer2013.csv, line 18: emotion '8'" in refusal(tmp_path / "fer2013.csv")
    for suffix in ARCHIVES:
        path = write_form(tmp_path, suffix, {"a/fer2013.csv": "\n".join(lines).encode()})
        start = f"{path}, member a/fer2013.csv, line 18: emotion '8', expected a class of 0 to 6"
        assert refusal(path).startswith(start)


@pytest.mark.parametrize(
    "content, found",
    [
        (f"emotion,pixels,Usage\n0,{PIXELS},Training,9\n".encode(), "line 2: more than 3 fields"),
        (f'emotion,pixels,Usage\n0,{PIXELS},"Training\n'.encode(), "EOF inside string"),
        (f"emotion,pixels,pixels \n0,{PIXELS}\n".encode(), "line 1: no column pixels, or several"),
        (b"", "No columns to parse"),
        (b"\xff\xfe\0e\0m", "line 1: no column"),
    ],
)
def test_malformed_table(tmp_path, content, found):
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    text = refusal(path)
    assert text.startswith(str(path))
    assert found in text
    assert "a table with the columns emotion,pixels" in text


def test_limits_of_a_table(tmp_path, monkeypatch):
    path = tmp_path / "fer2013.csv"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse
    assert f"{path}: ValueError: 1073741825 bytes, at most 1073741824" in refusal(path)
    path.write_bytes(b"a," * 50_000)
    assert "line 1: more than 1024 bytes" in refusal(path)
    monkeypatch.setattr("data.reading.tables.MAX_ROWS", 10_000)
    path.write_text("emotion,pixels,Usage\n" + "\n" * 30_000)
    assert "more than 10000 lines" in refusal(path)
    monkeypatch.setattr("data.reading.tables.MAX_TABLE_BYTES", 1000)
    path = write_archive(tmp_path / "fer2013.zip", {"fer2013.csv": bytes(1001)})
    assert f"{path}, member fer2013.csv: ValueError: 1001 bytes" in refusal(path)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2", ".tar.xz"])
def test_small_archive_is_not_unpacked_to_a_large_table(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("data.reading.bounded.MAX_SMALL", 1 << 20)
    text = b"emotion,pixels,Usage" + b"\n" * (8 << 20)
    path = write_form(tmp_path, suffix, {"fer2013.csv": text})
    monkeypatch.setattr("tarfile.TarFile.extractfile", None)
    assert "unpacked 838" in refusal(path)


@pytest.mark.parametrize("form", ["table", "no row", "folder", ".zip"])
def test_nothing_to_train_on(tmp_path, form):
    path = tmp_path / "fer2013.csv"
    rows = [row for row in table_rows(SMALL) if row[2] != "Training" and form == "table"]
    path.write_text(table_text(rows))
    if form in ("folder", ".zip"):
        files = folder_images(SMALL).items()
        path = write_form(tmp_path, form, {k: v for k, v in files if "Training" not in k})
    assert refusal(path).startswith(f"{path}: holds no Training image, expected")


# --- images


def png_header(side):
    """A PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    return start + struct.pack(">II", zlib.crc32(header), 9) + b"IDAT"


GOOD = image_bytes(SMALL.images[0])
BAD_IMAGES = {
    "too wide": (image_bytes(np.zeros((9, 4097), np.uint8)), "image of 4097x9"),
    "bomb": (png_header(60_000), "Image size (3600000000 pixels)"),
    "truncated": (GOOD[:-900], "truncated"),
    "truncated jpeg": (image_bytes(SMALL.images[0], "JPEG")[:-900], "truncated"),
    "empty": (b"", "unreadable image"),
    "another format": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable image"),
    "too many bytes": (GOOD + bytes(1 << 24), "more than 16777216 bytes"),
}


@pytest.mark.parametrize("bad", BAD_IMAGES)
@pytest.mark.parametrize("form", ["folder", ".zip", ".tar.xz"])
def test_bad_image_is_named(tmp_path, bad, form):
    content, found = BAD_IMAGES[bad]
    name = "train/happy/Training_5.png"
    path = write_form(tmp_path, form, folder_images(SMALL) | {name: content})
    text = refusal(path)
    place = f"{path}/" if form == "folder" else f"{path}, member "
    assert text.startswith(f"{place}{name}: ")
    assert found in text
    assert "pixels a side, one of JPEG, PNG" in text


# --- archives


@pytest.mark.parametrize("suffix", ARCHIVES)
@pytest.mark.parametrize("form", ["folder", "table"])
def test_truncated_or_damaged_archive(tmp_path, suffix, form):
    files = folder_images(SMALL)
    if form == "table":
        files = {"fer2013.csv": table_text(table_rows(SMALL)).encode()}
    path = write_form(tmp_path, suffix, files)
    whole = path.read_bytes()
    end = len(whole)
    if suffix == ".tar":  # which ends in zeros, of which one block is enough
        with tarfile.open(path) as archive:
            between = archive.getmembers()[-1].offset
        end = (len(whole.rstrip(b"\0")) // 512 + 1) * 512
    cuts = [512, 1024, end - 5, between if suffix == ".tar" else 0]
    broken = [whole[:at] for at in [*np.linspace(0, end - 1, 16).astype(int).tolist(), *cuts]]
    if suffix != ".tar" and form == "folder":
        for at in np.linspace(end // 4, end // 2, 12).astype(int):
            broken.append(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
    for content in broken:
        path.write_bytes(content)
        text = refusal(path)
        assert text.startswith(str(path))
        assert "expected" in text


def test_encrypted_zip(tmp_path):
    path = write_form(tmp_path, ".zip", folder_images(SMALL))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    text = refusal(path)
    assert text.startswith(f"{path}, member train/angry/")
    assert "encrypted" in text


def test_named_file_is_no_archive(tmp_path):
    (tmp_path / "fer2013.rar").write_bytes(b"Rar!")
    text = refusal(tmp_path / "fer2013.rar")
    assert text.startswith(f"{tmp_path}/fer2013.rar: no FER2013 there")
    assert "a zip or tar archive" in text


def test_nothing_found(tmp_path):
    folder = tmp_path / "data"
    absent = refusal(folder)
    folder.mkdir()
    (folder / "fer2013.csv.cache.npz").write_bytes(b"left over")
    (folder / "fer2013new.csv").write_text("Usage,Image name\n")
    for text in (absent, refusal(folder)):
        assert text.startswith(f"--data {folder}: no FER2013 there and no other set")
        for part in ("Challenges in Representation Learning: Facial", "icml_face_data.csv",
                     "--data synthetic"):  # fmt: skip
            assert part in text


# --- read without an error


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_members_outside_are_skipped(tmp_path, suffix):
    stray = ["../train/happy/Training_1.png", "train/../../x.txt", "C:\\x.png", "/etc/x.png"]
    files = folder_images(SMALL) | dict.fromkeys(stray, GOOD)
    assert_same(read_set(write_form(tmp_path, suffix, files)), SMALL)


def test_backslashes_in_zip_members(tmp_path):
    files = {name.replace("/", "\\"): content for name, content in folder_images(SMALL).items()}
    assert_same(read_set(write_form(tmp_path, ".zip", files)), SMALL)
