"""Pictures of a user's own: every kind that pillow reads, and tools.predict on them."""

from __future__ import annotations

import csv
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import run, weights

import ensemble
from auto_fernet.drawing import draw_sheet
from auto_fernet.pictures import (
    SIDE,
    PictureError,
    Source,
    centre_face,
    cut_face,
    find_pictures,
    open_picture,
)
from common import cli
from data import types
from data.jaffe import BOX, load_jaffe
from data.synthetic.cross import draw_jaffe
from data.synthetic.fer2013 import draw_fer2013
from data.synthetic.writers import write_jaffe
from data.types import CLASSES
from model import build_network
from tools import predict
from utils import load_checkpoint


def load_picture(source: Source, crop=None) -> np.ndarray:
    return centre_face(open_picture(source), crop)


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A synthetic face, uint8 (48, 48)."""
    drawn = draw_fer2013(counts={"Training": 1, "PublicTest": 1, "PrivateTest": 1})
    return drawn["Training"].images[0, 0].numpy()


@pytest.fixture
def place(tmp_path: Path, face: np.ndarray) -> Path:
    """A folder with two networks, and one of pictures with two files that are none."""
    for seed, name in enumerate(("a", "b")):
        weights(tmp_path / f"{name}.pt", seed)
    (tmp_path / "faces").mkdir()
    for name, picture in (("one.png", face), ("two.webp", face[:, ::-1]), ("three.gif", face.T)):
        save(picture, tmp_path / "faces" / name, lossless=True)
    (tmp_path / "faces" / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    (tmp_path / "faces" / "notes.txt").write_text("no picture at all")
    return tmp_path


def save(picture: Image.Image | np.ndarray, path: Path, **options) -> Path:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    picture.save(path, **options)
    return path


# --- reading


def test_every_mode_gives_the_same_gray(face, tmp_path):
    gray = Image.fromarray(face)
    deep = Image.fromarray(face.astype(np.uint16) * 257)
    middle = Image.new("L", (48, 48), 128)
    kinds = {f"{mode}.png": gray.convert(mode) for mode in ("L", "RGB", "RGBA", "LA", "P")}
    kinds |= {"P.gif": gray.convert("P"), "CMYK.tif": gray.convert("RGB").convert("CMYK")}
    kinds |= {"L.bmp": gray, "16.png": deep, "16.tif": deep}
    kinds |= {"LAB.tif": Image.merge("LAB", [gray, middle, middle])}
    for name, image in kinds.items():
        found = load_picture(save(image, tmp_path / name))
        assert (found.dtype, found.shape) == (np.uint8, (48, 48))
        assert np.abs(found.astype(int) - face).max() <= 1, name
    found = load_picture(save(gray.convert("YCbCr"), tmp_path / "x.jpg", quality=100))
    assert np.abs(found.astype(int) - face).max() <= 3
    black_or_white = load_picture(save(gray.convert("1"), tmp_path / "1.png"))
    assert set(np.unique(black_or_white)) == {0, 255}


def test_transparent_is_white(face, tmp_path):
    image = Image.fromarray(face).convert("RGBA")
    alpha = np.where(np.arange(48) < 24, 0, 255).astype(np.uint8)[None].repeat(48, axis=0)
    image.putalpha(Image.fromarray(alpha))
    found = load_picture(save(image, tmp_path / "half.png"))
    assert (found[:, :24] == 255).all()
    assert (found[:, 24:] == face[:, 24:]).all()
    palette = Image.fromarray(face).convert("P")
    found = load_picture(save(palette, tmp_path / "p.png", transparency=int(face[0, 0])))
    assert (found[face == face[0, 0]] == 255).all()


@pytest.mark.parametrize("orientation, undone", [
    (1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (4, np.flipud),
    (5, np.transpose), (7, lambda x: np.rot90(x, 2).T), (6, lambda x: np.rot90(x, 1)),
    (8, lambda x: np.rot90(x, -1)),
])  # fmt: skip
def test_exif_orientation(orientation, undone, face, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (load_picture(save(undone(face), tmp_path / "x.png", exif=exif)) == face).all()


def test_centred_square_of_any_size(face, tmp_path):
    wide = np.full((48, 90), 7, np.uint8)
    wide[:, 21:69] = face
    assert (load_picture(save(wide, tmp_path / "wide.png")) == face).all()
    assert (load_picture(save(wide.T, tmp_path / "high.png")) == face.T).all()
    for size in ((1, 1), (1, 300), (3, 2), (1000, 700)):
        found = load_picture(save(Image.new("L", size, 90), tmp_path / "any.png"))
        assert found.shape == (48, 48)
        assert (found == 90).all()


def test_crop_is_that_of_test_jaffe(tmp_path):
    write_jaffe(draw_jaffe(takes=1), tmp_path / "jaffe")
    faces = load_jaffe(tmp_path / "jaffe")
    for name, image in list(zip(faces.names, faces.images[:, 0].numpy(), strict=True))[::20]:
        assert (load_picture(tmp_path / "jaffe" / name, BOX) == image).all()


def png_of(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        rest = kind + content
        return struct.pack(">I", len(content)) + rest + struct.pack(">I", zlib.crc32(rest))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


NO_PICTURES = {
    "bomb.png": (png_of(12_000, 12_000), "12000x12000.* expected .* at most 134217728 pixels"),
    "huge.png": (png_of(2**30, 2**30), "DecompressionBomb"),
    "cut.png": (png_of(40, 40), "truncated"),
    "empty.jpg": (b"", "unreadable"),
    "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable"),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_is_refused_in_one_line(name, tmp_path):
    content, said = NO_PICTURES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PictureError, match=said) as raised:
        load_picture(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(PictureError, match=r"nowhere\.png"):
        find_pictures([str(tmp_path / "nowhere.png")])


def test_arrays_and_images_of_pillow(face):
    assert SIDE == types.SIDE
    colour = np.stack([face, face, face], axis=2)
    for source in (face, colour, Image.fromarray(face), Image.fromarray(colour)):
        assert np.abs(load_picture(source).astype(int) - face).max() <= 1
    with pytest.raises(PictureError, match=r"array: .* expected uint8"):
        open_picture(face.astype(np.float64)[None])


def test_face_beyond_the_picture_repeats_its_edge(face):
    picture = Image.fromarray(face)
    assert (cut_face(picture, (0, 0, 48, 48)) == face).all()
    cut = cut_face(picture, (-24, 0, 48, 48))
    assert (cut[:, 24:] == face[:, :24]).all()
    assert (cut[:, :24] == face[:, :1]).all()
    with pytest.raises(PictureError, match="outside the picture of 48x48"):
        cut_face(picture, (48, 0, 9, 9))


def test_folders_are_searched_below_and_what_is_left_out_is_named(place, face):
    folder = place / "faces"
    (folder / "sub").mkdir()
    for name in ("sub/four.png", ".hidden.png"):
        save(face, folder / name)
    for name in ("a.heic", "b.mp4", ".DS_Store"):
        (folder / name).write_bytes(b"")
    names = ["broken.jpg", "one.png", "sub/four.png", "three.gif", "two.webp"]
    found, left_out = find_pictures([str(folder)])
    assert found == [(name, folder / name) for name in names]
    # Of several arguments the whole names, as short ones could be the same.
    found, _ = find_pictures([str(folder / "two.webp"), str(folder)])
    assert [name for name, _ in found] == [str(folder / name) for name in ("two.webp", *names)]
    assert find_pictures([str(folder / "two.webp")])[0] == [("two.webp", folder / "two.webp")]
    with pytest.raises(PictureError, match="no such file or folder"):
        find_pictures([""])
    assert [line.split(":")[0] for line in left_out] == [
        str(folder / name) for name in ("a.heic", "b.mp4", "notes.txt")
    ]


# --- the command


def test_predictions_of_a_folder(place, face):
    words = [sys.executable, "-m", "tools.predict", str(place / "faces"), "--checkpoint", "a,b",
             "--model_path", str(place), "--tta", "flip", "--out", str(place / "out"),
             "--device", "cpu"]  # fmt: skip
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out: ") == 2
    assert "broken.jpg: " in done.stderr
    assert "notes.txt: not a format" in done.stderr
    rows = list(csv.DictReader((place / "out" / "predictions.csv").open()))
    assert [row["picture"] for row in rows] == ["one.png", "three.gif", "two.webp"]
    # The oracle: every network on every view of every face, one by one.
    for row, picture in zip(rows, (face, face.T, face[:, ::-1]), strict=True):
        logits = []
        for name in ("a", "b"):
            found = load_checkpoint(place / f"{name}.pt", ["weights"])
            network = build_network(found["model"]).eval()
            network.load_state_dict(found["state_dict"])
            for view in (picture, picture[:, ::-1]):
                image = torch.tensor(np.ascontiguousarray(view))[None, None] / 255
                logits.append(network(image)[0][0])
        p = torch.stack(logits).double().mean(0).softmax(0).tolist()
        assert [float(row[name]) for name in CLASSES] == pytest.approx(p, abs=1e-5)
        assert row["expression"] == CLASSES[int(np.argmax(p))]
        (line,) = (line for line in done.stdout.split("\n") if line.startswith(row["picture"]))
        assert line.split()[1] == row["expression"]
        assert all(f"{name} {100 * float(row[name]):.1f}" in line for name in CLASSES)
    with Image.open(place / "out" / "faces.png") as sheet:
        assert sheet.width > 1000


def predicted(place: Path, pictures: str, *more: str) -> int:
    words = [str(place / pictures), "--checkpoint", "a", "--model_path", str(place), "--out",
             str(place / "out"), *more]  # fmt: skip
    return cli.run_script(predict.main, predict.build_parser(), words)


def test_shipped_network_answers_by_default(place):
    parse = predict.build_parser().parse_args
    assert parse(["x.png"]).checkpoint == ["auto_fernet"]
    assert ensemble.build_parser().parse_args([]).model_names == ["auto_fernet"]
    out = [str(place / "out"), str(place / "named")]
    for folder, more in zip(out, ([], ["--checkpoint", "auto_fernet"]), strict=True):
        words = [str(place / "faces" / "one.png"), "--out", folder, "--device", "cpu", *more]
        assert cli.run_script(predict.main, predict.build_parser(), words) == 0
    first, second = (Path(folder, "predictions.csv").read_text(encoding="utf-8") for folder in out)
    assert first == second


def test_file_names_are_printed_on_one_line(face, place, capsys):
    name = "a\nb \udcff.png"
    save(face, place / name)
    assert predicted(place, name) == 0
    assert capsys.readouterr().out.startswith(repr(name))


@pytest.mark.parametrize("pictures, more, named", [
    ("faces/none.png", [], ["none.png", "no such file"]),
    ("faces/one.png", ["--checkpoint", "c"], ["--checkpoint c"]),
    ("faces/one.png", ["--crop", "9,9,30,30", "--detect"], ["--crop: not where faces are found"]),
    ("faces/one.png", ["--video", "x.mp4"], ["either pictures or --video"]),
    ("faces/one.png", ["--detector", "y.onnx"], ["y.onnx: no such file"]),
    ("bad", [], ["no face in 2 pictures"]),
])  # fmt: skip
def test_errors_are_one_line_and_write_nothing(pictures, more, named, place, capsys):
    (place / "bad").mkdir()
    (place / "bad" / "x.png").write_bytes(b"")
    (place / "bad" / "y.png").write_bytes(b"")
    assert predicted(place, pictures, *more) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert all(part in last for part in named), last
    assert not (place / "out").exists()


def test_crop_outside_the_frame_is_refused(place, capsys):
    with pytest.raises(SystemExit):
        predicted(place, "faces/one.png", "--crop", "9,9,3,3")
    assert "9,9,3,3 found, LEFT,TOP,RIGHT,BOTTOM" in capsys.readouterr().err


def test_picture_that_would_be_overwritten_is_refused(place, face, capsys):
    save(face, place / "faces" / "faces.png")
    before = (place / "faces" / "faces.png").read_bytes()
    assert predicted(place, "faces", "--out", str(place / "faces")) == 2
    assert "faces.png: would be overwritten" in capsys.readouterr().err
    assert (place / "faces" / "faces.png").read_bytes() == before


def test_interrupted_run_keeps_the_table_before(place, monkeypatch):
    assert predicted(place, "faces") == 0
    before = (place / "out" / "predictions.csv").read_bytes()
    calls = iter([None, None])

    def interrupted(source):
        if next(calls, KeyboardInterrupt) is not None:
            raise KeyboardInterrupt
        return Image.new("L", (48, 48))

    monkeypatch.setattr("auto_fernet.command.open_picture", interrupted)
    assert predicted(place, "faces") == 130
    assert (place / "out" / "predictions.csv").read_bytes() == before
    part = (place / "out" / "predictions.csv.part").read_text()
    assert len(part.splitlines()) == 3


@pytest.mark.parametrize("blocked", ["out", "out/predictions.csv", "out/faces.png"])
def test_output_that_cannot_be_written_is_one_line(blocked, place, capsys):
    (place / blocked / "full").mkdir(parents=True)
    if blocked == "out":
        (place / "out" / "full").rmdir()
        (place / "out").rmdir()
        (place / "out").write_text("a file")
    assert predicted(place, "faces") == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert blocked in last
    assert re.search("cannot be (made|written)", last)


def test_large_picture_without_detection_is_warned_of_once(place, face, capsys):
    for name in ("x.png", "y.png"):
        save(Image.fromarray(face).resize((97, 120)), place / "faces" / name)
    assert predicted(place, "faces") == 0
    assert capsys.readouterr().err.count("one face must fill a picture") == 1
    assert predicted(place, "faces", "--crop", "0,0,200,200") == 0
    assert "must fill" not in capsys.readouterr().err


def test_own_drawings_are_not_read(place, capsys):
    for _ in range(2):
        assert predicted(place, "faces", "--out", str(place / "faces")) == 0
    assert "faces.png: drawn by auto-fernet" in capsys.readouterr().err
    assert len(list(csv.DictReader((place / "faces" / "predictions.csv").open()))) == 3


def test_names_that_the_terminal_cannot_show(place, face):
    save(face, place / "faces" / "ж.png")
    words = ["-m", "tools.predict", str(place / "faces"), "--checkpoint", "a", "--model_path",
             str(place), "--out", str(place / "out"), "--device", "cpu"]  # fmt: skip
    done = run(["env", "PYTHONIOENCODING=cp1252", sys.executable, *words])
    assert done.returncode == 0, done.stderr
    assert r"\u0436.png" in done.stdout


def test_contact_sheet(face):
    p = np.full(7, 1 / 7)
    faces = [(face, p, f"{k}_a_very_long_name_of_a_picture_of_a_face.png") for k in range(60)]
    sheet = draw_sheet(faces, CLASSES, 63)
    one = draw_sheet([(face, np.eye(7)[3], "x.png")], CLASSES, 1)
    assert one.width < sheet.width
    assert one.height < sheet.height
    # The face, enlarged, and one full bar stand in the picture.
    pixels = np.asarray(one)
    rows = np.flatnonzero((pixels == (33, 102, 172)).all(axis=2).sum(axis=1) > 90)
    assert 5 < len(rows) < 16
    large = np.asarray(Image.fromarray(face).resize((112, 112), Image.Resampling.NEAREST))
    at = np.argwhere((pixels[:, :, 0] != 255).any(axis=1)).min()
    assert any((pixels[y : y + 112, 16:128, 1] == large).all() for y in range(at, at + 120))
