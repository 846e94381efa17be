"""JAFFE as distributed or cropped, framed as FER2013, and one-line errors."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from fer2013_files import logged, write_archive
from PIL import Image

from data.folds import leave_one_subject_out
from data.jaffe import BOX, COUNTS, load_jaffe
from data.synthetic_cross import draw_jaffe
from data.types import CLASSES
from data.writers import write_jaffe
from utils import UserError


@pytest.fixture(scope="module")
def drawn():
    return draw_jaffe(takes=1)


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """The drawn set as files, in a folder named as the real one."""
    folder = tmp_path_factory.mktemp("data") / "jaffedbase"
    write_jaffe(drawn, folder)
    return folder


def encoded(pixels, form="TIFF"):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, form)
    return stream.getvalue()


def plain(value=90, size=256):
    return np.full((size, size), value, np.uint8)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refusal(path, **options):
    with pytest.raises(UserError) as raised:
        load_jaffe(path, **options)
    text = str(raised.value)
    assert text.isprintable()
    return text


# --- as distributed


def test_read_back_sorted_by_class_and_name(drawn, whole):
    faces = load_jaffe(whole.parent)
    order = sorted(range(70), key=lambda row: (drawn.labels[row].item(), drawn.names[row]))
    assert faces.images.shape == (70, 1, 48, 48)
    assert faces.images.dtype == torch.uint8
    assert torch.equal(faces.labels, drawn.labels[order])
    assert faces.names == [drawn.names[row] for row in order]
    assert faces.subjects == [drawn.subjects[row] for row in order]
    assert faces.sequences == [name[:5] for name in faces.names]
    assert torch.equal(load_jaffe(whole).images, faces.images)


def test_codes_are_classes(tmp_path):
    for number, code in enumerate(("SA", "NE", "AN", "SU", "DI", "HA", "FE")):
        write(tmp_path / f"KA.{code}1.{number}.tiff", encoded(plain()))
    codes = [name[3:5] for name in load_jaffe(tmp_path).names]
    assert codes == ["AN", "DI", "FE", "HA", "SA", "SU", "NE"]
    assert CLASSES == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def test_box_is_resized_as_by_torch(drawn, whole):
    faces = load_jaffe(whole)
    for row in (0, 33, 69):
        image = drawn.images[drawn.names.index(faces.names[row])]
        left, top, right, bottom = BOX
        expected = torch.nn.functional.interpolate(
            image[None, :, top:bottom, left:right].float(),
            (48, 48),
            mode="bilinear",
            antialias=True,
        )
        assert (faces.images[row].float() - expected[0]).abs().max() <= 1.0


def test_box_scales_with_the_image(tmp_path):
    for number, size in enumerate((256, 512, 224)):
        pixels = plain(0, size)
        scale = size / 256
        left, top, right, bottom = (int(edge * scale) for edge in BOX)
        pixels[top:bottom, left:right] = 200
        write(tmp_path / f"KA.AN{number + 1}.{number}.tiff", encoded(pixels))
    with logged() as lines:
        assert load_jaffe(tmp_path).images.unique().tolist() == [200]
    assert f"{tmp_path}: images of 224x224 are cropped as whole frames" in lines
    assert load_jaffe(tmp_path, crop=(0, 0, 50, 60)).images.unique().tolist() == [0]


def test_whole_frame(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    write(tmp_path / "KA.AN1.39.tiff", encoded(pixels))
    whole = np.asarray(Image.fromarray(pixels).resize((48, 48), Image.Resampling.BILINEAR))
    assert (load_jaffe(tmp_path, crop=None).images[0, 0].numpy() == whole).all()
    assert (load_jaffe(tmp_path).images[0, 0].numpy() != whole).any()


@pytest.mark.parametrize("shape", [(48, 48), (148, 148), (160, 120)])
def test_cropped_images_with_names_are_taken_whole(shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write(tmp_path / "KA.AN1.39.tiff", encoded(pixels))
    with logged() as lines:
        found = load_jaffe(tmp_path).images[0, 0].numpy()
    whole = np.asarray(Image.fromarray(pixels).resize((48, 48), Image.Resampling.BILINEAR))
    assert (found == whole).all()
    assert any(": 1 images are cropped already and taken whole" in line for line in lines)
    assert "holds cropped images" in refusal(tmp_path, crop=(1, 2, 3, 4))


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


def test_colour_and_palette_become_gray(tmp_path):
    grays = np.add.outer(np.arange(256), np.arange(256)) // 2
    write(tmp_path / "KA.AN1.1.tiff", encoded(grays))
    palette = Image.fromarray(255 - grays.astype(np.uint8))
    palette.putpalette([255 - index // 3 for index in range(768)])
    palette.save(tmp_path / "KA.AN2.2.tiff")
    write(tmp_path / "KA.AN3.3.tiff", encoded(np.stack([grays] * 3, axis=-1)))
    gray, from_palette, from_colour = load_jaffe(tmp_path).images
    assert torch.equal(gray, from_palette)
    assert torch.equal(gray, from_colour)


@pytest.mark.parametrize("crop", [BOX, None])
def test_synthetic_equals_its_files(drawn, whole, monkeypatch, crop):
    monkeypatch.setattr("data.jaffe.draw_jaffe", lambda: drawn)
    synthetic, read = load_jaffe("synthetic", crop), load_jaffe(whole, crop)
    assert synthetic.digest() == read.digest()
    assert (synthetic.subjects, synthetic.sequences) == (read.subjects, read.sequences)


def test_takes_are_one_sequence(tmp_path):
    for name in ("KA.AN1.39.tiff", "KA.AN2.40.tiff", "KA.DI1.42.tiff", "KL.AN1.167.tiff"):
        write(tmp_path / name, encoded(plain()))
    assert load_jaffe(tmp_path).sequences == ["KA.AN", "KA.AN", "KL.AN", "KA.DI"]


# --- class folders


def test_class_folders_are_taken_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    write(tmp_path / "JAFFE" / "anger" / "KA.AN1.39.png", encoded(pixels, "PNG"))
    write(tmp_path / "JAFFE" / "Happiness" / "face 7.jpg", encoded(plain(60, 96), "JPEG"))
    write(tmp_path / "JAFFE" / "sadness" / "KL_SA2_160.bmp", encoded(plain(70)[:200], "BMP"))
    write(tmp_path / "JAFFE" / "surprise" / "face 7.jpg", encoded(plain(80), "JPEG"))
    write(tmp_path / "JAFFE" / "neutral" / "notes.txt", b"no image")
    with logged() as lines:
        faces = load_jaffe(tmp_path)
    assert any("JAFFE: 4 images are cropped already and taken whole" in line for line in lines)
    assert f"{tmp_path}/JAFFE: left out: 1 .txt files" in lines
    assert [CLASSES[label] for label in faces.labels] == ["angry", "happy", "sad", "surprise"]
    assert faces.names == ["KA.AN1.39.png", "face 7.jpg", "KL_SA2_160.bmp", "face 7.jpg"]
    assert faces.subjects == ["KA", "", "KL", ""]
    assert faces.sequences == ["KA.AN", "Happiness/face 7.jpg", "KL.SA", "surprise/face 7.jpg"]
    assert (faces.images[0, 0].numpy() == pixels).all()
    assert faces.images[2].unique().tolist() == [70]
    with pytest.raises(UserError, match=r"--mode finetune: 2 of 4 file names .* KA.AN1.39.tiff"):
        leave_one_subject_out(faces.subjects)


def test_errors_of_class_folders(tmp_path):
    (tmp_path / "happy").mkdir()
    assert f"{tmp_path}: no JAFFE there" in refusal(tmp_path)
    path = write(tmp_path / "sad" / "one.png", encoded(plain(), "PNG"))
    assert f"--crop 1,2,3,4: {tmp_path} holds cropped" in refusal(tmp_path, crop=(1, 2, 3, 4))
    path.write_bytes(encoded(np.zeros((10, 4097)), "PNG"))
    assert "image of 4097x10; expected at most 4096 pixels" in refusal(tmp_path)
    path.unlink()
    path = write(tmp_path / "happy" / "KA.AN1.39.tiff", encoded(plain()))
    assert f"{path}: expression AN in the folder happy" in refusal(tmp_path)
    path.unlink()
    write(tmp_path / "happy" / "a.png", encoded(plain(), "PNG"))
    path = write(tmp_path / "contempt" / "a.png", encoded(plain(), "PNG"))
    assert f"{path}: class folder 'contempt', expected one" in refusal(tmp_path)


@pytest.mark.parametrize("name", CLASSES)
def test_class_folders_named_as_fer2013(tmp_path, name):
    write(tmp_path / name / "one.png", encoded(plain(), "PNG"))
    assert load_jaffe(tmp_path).labels.tolist() == [CLASSES.index(name)]


# --- finding it, errors


def test_other_files_are_skipped(tmp_path):
    write(tmp_path / "jaffe" / "KA.AN1.39.tiff", encoded(plain()))
    for name in ("README", "README_FIRST.txt", ".DS_Store", "Thumbs.db", "._KA.AN1.39.tiff"):
        write(tmp_path / "jaffe" / name, b"no image")
    write(tmp_path / "photo.png", b"beside the set")
    assert load_jaffe(tmp_path).names == ["KA.AN1.39.tiff"]


def test_other_counts_are_logged(whole):
    assert sum(COUNTS) == 213
    with logged() as lines:
        load_jaffe(whole)
    assert len(lines) == 1
    assert "jaffedbase: counts differ from JAFFE's: angry 10 instead of 30" in lines[0]
    assert "disgust 10 instead of 29" in lines[0]


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_nothing_found(tmp_path, name):
    (tmp_path / "empty" / "jaffe").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    text = refusal(tmp_path / name)
    for part in (f"{tmp_path / name}: no ", "JAFFE", "Zenodo", "data/", "--data synthetic"):
        assert part in text


@pytest.mark.parametrize("name", ["face.tiff", "KA.XX1.39.tiff", "KA.AN.39.tiff", "K\nA.tiff"])
def test_file_name_does_not_parse(tmp_path, name):
    write(tmp_path / name, encoded(plain()))
    text = refusal(tmp_path)
    assert repr(name) in text
    assert "expected one such as KA.AN1.39.tiff" in text


@pytest.mark.parametrize("content", [b"", b"no image", encoded(plain())[:5000]])
@pytest.mark.parametrize("folder", [".", "sad"])
def test_unreadable_image_is_named(tmp_path, content, folder):
    path = write(tmp_path / folder / "KA.SA1.39.tiff", content)
    text = refusal(tmp_path)
    assert text.startswith(f"{path}: ")
    assert "one of JPEG, PNG, TIFF" in text


def test_frame_is_not_square(tmp_path):
    path = write(tmp_path / "KA.AN1.39.tiff", encoded(plain()[:200]))
    assert f"{path}: ValueError: image of 256x200, not square; " in refusal(tmp_path)


@pytest.mark.parametrize("crop", [(-1, 0, 9, 9), (0, 0, 257, 9), (9, 0, 9, 9), (0, 9, 9, 8)])
def test_box_outside_the_frame(whole, crop):
    assert ",".join(map(str, crop)) in refusal(whole, crop=crop)
