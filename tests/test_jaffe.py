"""JAFFE as distributed or cropped, framed as FER2013, and one-line errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from fer2013_files import image_bytes, logged, refused, write_archive, write_folder
from PIL import Image

from data.folds import leave_one_subject_out
from data.jaffe import BOX, COUNTS, load_jaffe
from data.synthetic.cross import draw_jaffe
from data.synthetic.writers import write_jaffe
from data.types import CLASSES


@pytest.fixture(scope="module")
def drawn():
    return draw_jaffe(takes=1)


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """The drawn set as files, in a folder named as the real one."""
    folder = tmp_path_factory.mktemp("data") / "jaffedbase"
    write_jaffe(drawn, folder)
    return folder


def plain(value=90, size=256, form="TIFF"):
    return image_bytes(np.full((size, size), value), form)


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def shrunk(pixels):
    return np.asarray(Image.fromarray(pixels).resize((48, 48), Image.Resampling.BILINEAR))


def write(path, content):
    return write_folder(path.parent, {path.name: content}) / path.name


# --- as distributed


def test_read_back_sorted_by_class_and_name(drawn, whole):
    assert sum(COUNTS) == 213
    with logged() as lines:
        faces = load_jaffe(whole.parent)
    (line,) = lines
    assert "jaffedbase: counts differ from JAFFE's: angry 10 instead of 30" in line
    assert "disgust 10 instead of 29" in line
    order = sorted(range(70), key=lambda row: (drawn.labels[row].item(), drawn.names[row]))
    assert faces.images.shape == (70, 1, 48, 48)
    assert faces.images.dtype == torch.uint8
    assert torch.equal(faces.labels, drawn.labels[order])
    assert faces.names == [drawn.names[row] for row in order]
    assert faces.subjects == [drawn.subjects[row] for row in order]
    assert faces.sequences == [name[:5] for name in faces.names]
    assert torch.equal(load_jaffe(whole).images, faces.images)
    left, top, right, bottom = BOX
    for row in (0, 33, 69):
        face = drawn.images[order[row]][None, :, top:bottom, left:right].float()
        expected = torch.nn.functional.interpolate(face, (48, 48), mode="bilinear", antialias=True)
        assert (faces.images[row].float() - expected[0]).abs().max() <= 1.0


def test_codes_are_classes(tmp_path):
    for number, code in enumerate(("SA1", "NE1", "AN1", "SU1", "DI1", "HA1", "FE1", "AN2")):
        write(tmp_path / "jaffe" / f"KA.{code}.{number}.tiff", plain())
    for name in ("README", "README_FIRST.txt", ".DS_Store", "Thumbs.db", "._KA.AN1.39.tiff"):
        write(tmp_path / "jaffe" / name, b"no image")
    write(tmp_path / "photo.png", b"beside the set")
    faces = load_jaffe(tmp_path)
    assert faces.sequences == [f"KA.{c}" for c in "AN AN DI FE HA SA SU NE".split()]
    assert [CLASSES[label] for label in faces.labels] == [
        "angry", "angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"
    ]  # fmt: skip


def test_box_scales_with_the_image(tmp_path):
    for number, size in enumerate((256, 512, 224)):
        pixels = np.zeros((size, size))
        left, top, right, bottom = (int(edge * size / 256) for edge in BOX)
        pixels[top:bottom, left:right] = 200
        write(tmp_path / f"KA.AN{number + 1}.{number}.tiff", image_bytes(pixels, "TIFF"))
    assert load_jaffe(tmp_path).images.unique().tolist() == [200]
    assert load_jaffe(tmp_path, crop=(0, 0, 50, 60)).images.unique().tolist() == [0]


@pytest.mark.parametrize("shape", [(256, 256), (48, 48), (148, 148), (160, 120)])
def test_whole_images(shape, tmp_path):
    pixels = random_pixels(*shape)
    write(tmp_path / "KA.AN1.39.tiff", image_bytes(pixels, "TIFF"))
    with logged() as lines:
        found = load_jaffe(tmp_path).images[0, 0].numpy()
    assert (load_jaffe(tmp_path, crop=None).images[0, 0].numpy() == shrunk(pixels)).all()
    cropped = shape != (256, 256)
    assert (found == shrunk(pixels)).all() == cropped
    said = ": 1 images are cropped already and taken whole"
    assert any(said in line for line in lines) == cropped


def test_frames_in_class_folders_are_cropped(drawn, whole, tmp_path):
    for path in whole.iterdir():
        name = CLASSES[["AN", "DI", "FE", "HA", "SA", "SU", "NE"].index(path.name[3:5])]
        write(tmp_path / "jaffe" / name.upper() / path.name, path.read_bytes())
    assert load_jaffe(tmp_path).digest() == load_jaffe(whole).digest()


@pytest.mark.parametrize("name", ["jaffe.zip", "archive.zip", "jaffedbase.tar.gz"])
def test_archive(name, whole, tmp_path):
    files = {f"jaffedbase/{path.name}": path.read_bytes() for path in whole.iterdir()}
    path = write_archive(tmp_path / name, files | {"jaffedbase/README": b"about"})
    with logged() as lines:
        found = load_jaffe(tmp_path)
    assert found.digest() == load_jaffe(path).digest() == load_jaffe(whole).digest()
    assert f"{path}: left out: 1 'README' files" in lines


@pytest.mark.parametrize("crop", [BOX, None])
def test_synthetic_equals_its_files(drawn, whole, monkeypatch, crop):
    monkeypatch.setattr("data.jaffe.draw_jaffe", lambda: drawn)
    synthetic, read = load_jaffe("synthetic", crop), load_jaffe(whole, crop)
    assert synthetic.digest() == read.digest()
    assert (synthetic.subjects, synthetic.sequences) == (read.subjects, read.sequences)


# --- class folders


def test_class_folders_are_taken_whole(tmp_path):
    pixels = random_pixels(48, 48)
    root = write_folder(tmp_path / "JAFFE", {
        "anger/KA.AN1.39.png": image_bytes(pixels),
        "Happiness/face 7.jpg": plain(60, 96, "JPEG"),
        "sadness/KL_SA2_160.bmp": image_bytes(np.full((200, 256), 70), "BMP"),
        "surprise/face 7.jpg": plain(80, form="JPEG"),
        "neutral/notes.txt": b"no image",
    })  # fmt: skip
    with logged() as lines:
        faces = load_jaffe(tmp_path)
    assert any("JAFFE: 4 images are cropped already and taken whole" in line for line in lines)
    assert f"{root}: left out: 1 .txt files" in lines
    assert [CLASSES[label] for label in faces.labels] == ["angry", "happy", "sad", "surprise"]
    assert faces.names == ["KA.AN1.39.png", "face 7.jpg", "KL_SA2_160.bmp", "face 7.jpg"]
    assert faces.subjects == ["KA", "", "KL", ""]
    assert faces.sequences == ["KA.AN", "Happiness/face 7.jpg", "KL.SA", "surprise/face 7.jpg"]
    assert (faces.images[0, 0].numpy() == pixels).all()
    assert faces.images[2].unique().tolist() == [70]
    text = refused(leave_one_subject_out, faces.subjects)
    assert re.search(r"--mode finetune: 2 of 4 file names .* KA.AN1.39.tiff", text)


@pytest.mark.parametrize("files, found", [
    ({"happy/README": b""}, ": no JAFFE there"),
    ({"sad/one.png": image_bytes(np.zeros((10, 4097)))},
     "image of 4097x10; expected at most 4096 pixels"),
    ({"happy/KA.AN1.39.tiff": plain()}, "/KA.AN1.39.tiff: expression AN in the folder happy"),
    ({"happy/a.png": plain(), "contempt/a.png": plain()},
     "/contempt/a.png: class folder 'contempt', expected one"),
    ({"KA.AN1.39.tiff": image_bytes(np.full((200, 256), 90), "TIFF")},
     "/KA.AN1.39.tiff: ValueError: image of 256x200, not square; "),
])  # fmt: skip
def test_misfits(files, found, tmp_path):
    text = refused(load_jaffe, write_folder(tmp_path, files))
    assert str(tmp_path) in text
    assert found in text
