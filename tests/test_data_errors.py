"""Whatever is wrong with a set is refused in one line: the file, the place, what was expected."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from fer2013_files import (
    folder_images,
    image_bytes,
    small_set,
    table_rows,
    table_text,
    write_archive,
    write_folder,
)
from PIL import Image

from data.cache import cache_path
from data.fer2013 import load_fer2013
from utils import UserError

ARCHIVES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz"]
SMALL = small_set(each=1)
PIXELS = " ".join(["7"] * 2304)


def refusal(path):
    """The text of the error, which must be one line and must leave no cache behind."""
    with pytest.raises(UserError) as raised:
        load_fer2013(path)
    text = str(raised.value)
    assert text.isprintable()
    assert not cache_path(path).exists()
    return text


def refusal_of_row(path, emotion="3", pixels=PIXELS, usage="Training"):
    """The error for this row as line 5 of an otherwise good table."""
    rows = table_rows(SMALL)
    rows.insert(3, [emotion, pixels, usage])
    path.write_text(table_text(rows))
    return refusal(path)


def with_pixel(position, value):
    return " ".join(["7"] * (position - 1) + [value] + ["7"] * (2304 - position))


@pytest.mark.parametrize(
    "fields, found, expected",
    [
        ({"pixels": PIXELS[2:]}, "2303 pixel values", "expected 2304"),
        ({"pixels": PIXELS + " 7"}, "2305 pixel values", "expected 2304"),
        ({"pixels": ""}, "0 pixel values", "expected 2304"),
        ({"pixels": with_pixel(9, "256")}, "pixel 9 is '256'", "a whole number of 0 to 255"),
        ({"pixels": with_pixel(2304, "-1")}, "pixel 2304 is '-1'", "a whole number of 0 to 255"),
        ({"pixels": with_pixel(1, "x")}, "pixel 1 is 'x'", "a whole number of 0 to 255"),
        ({"pixels": with_pixel(2304, "7x")}, "pixel 2304 is '7x'", "a whole number of 0 to 255"),
        ({"pixels": with_pixel(2304, "1.5")}, "pixel 2304 is '1.5'", "a whole number of 0 to 255"),
        ({"pixels": with_pixel(3, "1e1")}, "pixel 3 is '1e1'", "a whole number of 0 to 255"),
        ({"pixels": with_pixel(3, "nan")}, "pixel 3 is 'nan'", "a whole number of 0 to 255"),
        ({"pixels": with_pixel(3, "4294967296")}, "'4294967296'", "a whole number of 0 to 255"),
        ({"pixels": with_pixel(3, "9" * 6000)}, "pixel 3 is '999", "a whole number of 0 to 255"),
        ({"emotion": "7"}, "emotion '7'", "a class of 0 to 6"),
        ({"emotion": "-1"}, "emotion '-1'", "a class of 0 to 6"),
        ({"emotion": "1.0"}, "emotion '1.0'", "a class of 0 to 6"),
        ({"emotion": "12"}, "emotion '12'", "a class of 0 to 6"),
        ({"emotion": ""}, "emotion ''", "a class of 0 to 6"),
        ({"usage": "Test"}, "Usage 'Test'", "Training, PublicTest, PrivateTest"),
        ({"usage": ""}, "Usage ''", "Training, PublicTest, PrivateTest"),
        ({"usage": "Training,9"}, "saw 4", "Expected 3 fields"),
        ({"usage": '"Training'}, "EOF inside string", "expected a table of emotion,pixels,Usage"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, fields, found, expected):
    path = tmp_path / "fer2013.csv"
    text = refusal_of_row(path, **fields)
    assert text.startswith(f"{path}")
    assert "line 5" in text
    assert found in text
    assert expected in text


def test_lines_are_counted_across_chunks_and_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("data.readers.ROWS_AT_ONCE", 4)
    lines = table_text(table_rows(SMALL)).splitlines()
    lines[9] = ""
    lines[17] = f"7,{PIXELS},Training"
    (tmp_path / "fer2013.csv").write_text("\n".join(lines))
    assert "fer2013.csv, line 18: emotion '7'" in refusal(tmp_path / "fer2013.csv")


def test_a_first_row_with_too_many_fields_is_refused(tmp_path):
    path = tmp_path / "fer2013.csv"
    path.write_text(f"emotion,pixels,Usage\n0,{PIXELS},Training,9\n")
    text = refusal(path)
    assert text.startswith(f"{path}, line 2: more fields than the 3 of the header, expected")


@pytest.mark.parametrize(
    "header, missing",
    [
        ("emotion,pixels", "Usage"),
        ("label,pixels,Usage", "emotion"),
        ("emotion,Usage,Usage ,px", "pixels, Usage"),
    ],
)
def test_missing_columns_are_named(tmp_path, header, missing):
    path = tmp_path / "fer2013.csv"
    path.write_text(f"{header}\n0,{PIXELS}\n")
    text = refusal(path)
    assert text.startswith(f"{path}, line 1: no column {missing}; ")
    assert "expected the columns emotion,pixels,Usage" in text


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\0e\0m", b"\x1f\x8b\x08\0\0", b"\0"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    text = refusal(path)
    assert text.startswith(str(path))
    assert "emotion,pixels,Usage" in text


@pytest.mark.parametrize("suffix", ["", *ARCHIVES])
def test_a_bad_row_in_an_archive_names_archive_member_and_line(tmp_path, suffix):
    rows = table_rows(SMALL)
    rows[2][0] = "7"
    path = tmp_path / f"fer2013{suffix or '.csv'}"
    if suffix:
        write_archive(path, {"fer2013/fer2013.csv": table_text(rows).encode()})
        place = f"{path}, member fer2013/fer2013.csv, line 4: "
    else:
        path.write_text(table_text(rows))
        place = f"{path}, line 4: "
    assert refusal(path).startswith(place + "emotion '7', expected a class of 0 to 6")


@pytest.mark.parametrize("gone", ["Training", "PublicTest", "PrivateTest"])
@pytest.mark.parametrize("form", ["table", "folder", ".zip", ".tar.xz"])
def test_a_set_without_one_of_the_splits_is_refused(tmp_path, gone, form):
    files = {name: data for name, data in folder_images(SMALL).items() if gone not in name}
    if form == "table":
        path = tmp_path / "fer2013.csv"
        path.write_text(table_text([row for row in table_rows(SMALL) if row[2] != gone]))
    elif form == "folder":
        path = write_folder(tmp_path / "fer2013", files)
    else:
        path = write_archive(tmp_path / f"fer2013{form}", files)
    text = refusal(path)
    assert text.startswith(f"{path}: holds no {gone} image, expected images of Training, ")


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "fer2013.csv").write_text("emotion,pixels,Usage\n")
    assert "holds no Training image" in refusal(tmp_path / "fer2013.csv")


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(header))
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + check
    return start + struct.pack(">I", 9) + b"IDAT"


def bitmap():
    stream = io.BytesIO()
    Image.fromarray(SMALL.images[0]).save(stream, "BMP")
    return stream.getvalue()


GOOD = image_bytes(SMALL.images[0])
UNREADABLE = "unreadable image"
FORMS = "expected a 48x48 JPEG or PNG"
BAD_IMAGES = {
    "smaller": (image_bytes(np.zeros((48, 47), np.uint8)), "image of 47x48", "expected 48x48"),
    "larger": (image_bytes(np.zeros((96, 96), np.uint8)), "image of 96x96", "expected 48x48"),
    "wide bomb": (png_header(12_000, 12_000), "image of 12000x12000", "expected 48x48"),
    "bomb": (png_header(60_000, 60_000), "DecompressionBombError", FORMS),
    "truncated": (GOOD[:-900], UNREADABLE, FORMS),
    "truncated jpeg": (image_bytes(SMALL.images[0], "JPEG")[:-900], UNREADABLE, FORMS),
    "no image": (b"hello", UNREADABLE, FORMS),
    "empty": (b"", UNREADABLE, FORMS),
    "another format": (bitmap(), UNREADABLE, FORMS),
    "too many bytes": (GOOD + bytes(1 << 20), f"{len(GOOD) + (1 << 20)} bytes", "at most 1048576"),
}


@pytest.mark.parametrize("bad", BAD_IMAGES)
@pytest.mark.parametrize("form", ["folder", ".zip", ".tar", ".tar.xz"])
def test_a_bad_image_is_named(tmp_path, bad, form):
    content, found, expected = BAD_IMAGES[bad]
    name = "train/happy/Training_5.png"
    if form == "folder":
        path = write_folder(tmp_path / "fer2013", folder_images(SMALL) | {name: content})
        place = f"{path}/{name}"
    else:
        path = write_archive(tmp_path / f"fer2013{form}", folder_images(SMALL) | {name: content})
        place = f"{path}, member {name}"
    text = refusal(path)
    assert text.startswith(f"{place}: ")
    assert found in text
    assert expected in text


def test_an_image_of_another_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    content = image_bytes(np.zeros((96, 96), np.uint8))
    path = write_folder(tmp_path / "fer2013", {"train/happy/Training_5.png": content})

    def decode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    assert "image of 96x96" in refusal(path)


@pytest.mark.parametrize("form", ["folder", ".zip", ".tar.gz"])
@pytest.mark.parametrize(
    "name, found, expected",
    [
        ("train/contempt/Training_1.png", "class folder 'contempt'", "angry, disgust, fear"),
        ("train/Angry/Training_1.png", "class folder 'Angry'", "angry, disgust, fear"),
        ("train/angry/1.png", "file name '1.png'", "Training_, PublicTest_, PrivateTest_"),
        ("test/sad/Test_1.png", "'Test_1.png'", "Training_, PublicTest_, PrivateTest_"),
        ("test/sad/training_1.png", "'training_1.png'", "Training_, PublicTest_, PrivateTest_"),
    ],
)
def test_an_unknown_class_or_prefix_is_named(tmp_path, form, name, found, expected):
    files = folder_images(SMALL) | {name: GOOD}
    if form == "folder":
        path = write_folder(tmp_path / "fer2013", files)
        place = f"{path}/{name}"
    else:
        path = write_archive(tmp_path / f"fer2013{form}", files)
        place = f"{path}, member {name}"
    text = refusal(path)
    assert text.startswith(f"{place}: ")
    assert found in text
    assert expected in text


@pytest.mark.parametrize("suffix", ARCHIVES)
@pytest.mark.parametrize("form", ["folder", "table"])
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path, suffix, form):
    files = folder_images(SMALL)
    if form == "table":
        files = {"fer2013.csv": table_text(table_rows(SMALL)).encode()}
    path = write_archive(tmp_path / f"fer2013{suffix}", files)
    whole = path.read_bytes()
    end = len(whole)
    if suffix == ".tar":  # which ends in zeros, of which one block is enough
        end = (len(whole.rstrip(b"\0")) // 512 + 1) * 512
    lengths = np.linspace(0, end - 1, 24).astype(int).tolist()
    lengths += [512, 1024, end - 5]
    for length in lengths:
        path.write_bytes(whole[:length])
        text = refusal(path)
        assert text.startswith(str(path))
        assert "damaged or truncated archive" in text
        assert "expected a whole .zip" in text


def test_a_tar_cut_between_two_members_is_refused(tmp_path):
    path = write_archive(tmp_path / "fer2013.tar", folder_images(SMALL))
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    assert "no end-of-archive mark" in refusal(path)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.xz"])
def test_a_damaged_byte_is_noticed(tmp_path, suffix):
    path = write_archive(tmp_path / f"fer2013{suffix}", folder_images(SMALL))
    whole = path.read_bytes()
    for position in np.linspace(len(whole) // 4, len(whole) // 2, 12).astype(int):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        assert refusal(path).startswith(str(path))


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize(
    "name",
    [
        "/train/happy/Training_1.png",
        "../train/happy/Training_1.png",
        "train/../../x.txt",
        "C:\\x.png",
    ],
)
def test_a_member_that_points_outside_is_refused(tmp_path, suffix, name):
    path = write_archive(tmp_path / f"fer2013{suffix}", folder_images(SMALL) | {name: GOOD})
    text = refusal(path)
    assert text.startswith(f"{path}: member ")
    assert "points outside" in text
    assert "expected paths inside the archive" in text


def test_an_encrypted_archive_is_refused(tmp_path):
    path = write_archive(tmp_path / "fer2013.zip", folder_images(SMALL))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    text = refusal(path)
    assert text.startswith(f"{path}, member train/angry/")
    assert "encrypted" in text


def test_a_member_name_that_is_no_text_is_refused(tmp_path):
    path = write_archive(tmp_path / "fer2013.zip", folder_images(SMALL))
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2")
    content[start + 9] |= 8  # the name claims to be UTF-8
    content[content.index(b"train", start)] = 0xFF
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: damaged or truncated archive ")


def test_a_set_under_each_of_two_folders_is_refused(tmp_path):
    files = folder_images(SMALL)
    files |= {f"again/{name}": content for name, content in files.items()}
    text = refusal(write_archive(tmp_path / "fer2013.zip", files))
    assert "a set in each of ., again; expected one set" in text


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_an_archive_of_something_else_is_refused(tmp_path, suffix):
    path = write_archive(tmp_path / f"fer2013{suffix}", {"notes.txt": b"hello"})
    text = refusal(path)
    assert text.startswith(f"{path}: holds no FER2013, expected fer2013.csv or ")


def test_a_table_above_the_limit_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "fer2013.csv"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse: takes no room
    assert refusal(path) == f"{path}: 1073741825 bytes, expected at most 1073741824"
    monkeypatch.setattr("data.readers.MAX_TABLE_BYTES", 1000)
    path = write_archive(tmp_path / "fer2013.zip", {"fer2013.csv": bytes(1001)})
    assert refusal(path) == f"{path}, member fer2013.csv: 1001 bytes, expected at most 1000"


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "fer2013.rar").write_bytes(b"Rar!")
    text = refusal(tmp_path / "fer2013.rar")
    assert text.startswith(f"{tmp_path}/fer2013.rar: not a form of FER2013; expected a .csv, ")


def test_a_name_cannot_break_the_line(tmp_path):
    files = folder_images(SMALL) | {"train/happy/Training_\n\x1b[2J.png": b"x"}
    for path in (
        write_folder(tmp_path / "fer2013", files),
        write_archive(tmp_path / "fer2013.zip", files),
        write_archive(tmp_path / "fer2013.tar", files | {"train/sad\n/x.png": GOOD}),
    ):
        refusal(path)


@pytest.mark.parametrize("present", [False, True], ids=["no such folder", "folder without a set"])
def test_nothing_found_says_where_to_get_it(tmp_path, present):
    folder = tmp_path / "data"
    if present:
        folder.mkdir()
        (folder / "fer2013.csv.cache.npz").write_bytes(b"left over")
        (folder / "fer2013new.csv").write_text("Usage,Image name\n")
    text = refusal(folder)
    assert text.startswith(f"--data {folder}: no FER2013 there; expected fer2013.csv, ")
    assert "Challenges in Representation Learning: Facial Expression Recognition" in text
    assert "icml_face_data.csv" in text
    assert "--data synthetic" in text


def test_zip_members_with_backslashes_are_read(tmp_path):
    path = tmp_path / "fer2013.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in folder_images(SMALL).items():
            archive.writestr(name.replace("/", "\\"), content)
    assert len(load_fer2013(path)["Training"].images) == 7
