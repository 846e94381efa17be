"""Pictures of a user's own: how they are found, and tools.predict on them."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import run, weights
from test_pictures import save

from auto_fernet.drawing import draw_sheet
from auto_fernet.pictures import PictureError, find_pictures, open_picture
from common import cli
from data.types import CLASSES
from model import build_network
from tools import predict
from utils import load_checkpoint


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


# --- finding


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


def test_file_names_are_printed_on_one_line(face, place, capsys):
    name = "a\nb \udcff.png"
    save(face, place / name)
    assert predicted(place, name) == 0
    assert capsys.readouterr().out.startswith(repr(name))


@pytest.mark.parametrize("pictures, more, named", [
    ("faces/one.png", ["--checkpoint", "c"], ["--checkpoint c"]),
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


def test_links_are_not_written_through(place, face, capsys):
    (place / "out").mkdir()
    inputs = [save(face, place / name) for name in ("p.png", "q.png")]
    before = inputs[0].read_bytes()
    (place / "out" / "faces.png").hardlink_to(inputs[0])
    assert predicted(place, "p.png") == 2
    assert "p.png: would be overwritten" in capsys.readouterr().err
    assert predicted(place, "q.png") == 0
    assert inputs[0].read_bytes() == before != (place / "out" / "faces.png").read_bytes()


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
    (part,) = (place / "out").glob("predictions.csv.*.part")
    assert len(part.read_text().splitlines()) == 3


def test_two_runs_into_one_folder_do_not_mix(place, monkeypatch, capsys):
    """The second runs while the first reads its third picture."""
    calls = iter([None, None, "second"])
    read = open_picture

    def reads(source):
        if next(calls, None):
            assert predicted(place, "faces/one.png") == 0
        return read(source)

    monkeypatch.setattr("auto_fernet.command.open_picture", reads)
    assert predicted(place, "faces") == 0
    rows = list(csv.DictReader((place / "out" / "predictions.csv").open()))
    assert [row["picture"] for row in rows] == ["one.png", "three.gif", "two.webp"]
    assert {path.name for path in (place / "out").iterdir()} == {"predictions.csv", "faces.png"}
    assert "will be replaced" not in capsys.readouterr().err
    assert predicted(place, "faces") == 0
    assert capsys.readouterr().err.count("predictions.csv: of an earlier run, will be repl") == 1


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


def test_contact_sheet(face):
    p = np.full(7, 1 / 7)
    faces = [(face, p, f"{k}_a_very_long_name_of_a_picture_of_a_face.png") for k in range(60)]
    sheet = draw_sheet(faces, CLASSES, 63)
    one = draw_sheet([(face, np.eye(7)[3], "x.png")], CLASSES, 1)
    assert one.width < sheet.width
    assert one.height < sheet.height
    # The face, enlarged, stands in the picture.
    pixels = np.asarray(one)
    large = np.asarray(Image.fromarray(face).resize((112, 112), Image.Resampling.NEAREST))
    at = np.argwhere((pixels[:, :, 0] != 255).any(axis=1)).min()
    assert any((pixels[y : y + 112, 16:128, 1] == large).all() for y in range(at, at + 120))
