"""JAFFE as distributed or cropped by others, framed as FER2013, refused in one line otherwise."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data.folds import leave_one_subject_out
from data.jaffe import BOX, COUNTS, load_jaffe
from data.readers import CLASSES
from data.synthetic_cross import draw_jaffe
from data.writers import write_jaffe
from utils import UserError


@pytest.fixture(scope="module")
def drawn():
    return draw_jaffe(takes=1)


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """The drawn set as files, in a folder that is named as the real one is."""
    folder = tmp_path_factory.mktemp("data") / "jaffedbase"
    write_jaffe(drawn, folder)
    return folder


def encoded(pixels, form="TIFF"):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, form)
    return stream.getvalue()


def frame(value=90, size=256):
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


def test_the_table_is_the_known_one():
    assert COUNTS == (30, 29, 32, 31, 31, 30, 30)
    assert sum(COUNTS) == 213


def test_a_written_set_is_found_and_read_back_sorted_by_class_and_name(drawn, whole):
    faces = load_jaffe(whole.parent)
    order = sorted(range(70), key=lambda row: (drawn.labels[row].item(), drawn.names[row]))
    assert faces.images.shape == (70, 1, 48, 48)
    assert faces.images.dtype == torch.uint8
    assert torch.equal(faces.labels, drawn.labels[order])
    assert faces.names == [drawn.names[row] for row in order]
    assert faces.subjects == [drawn.subjects[row] for row in order]
    assert faces.sequences == [name[:5] for name in faces.names]
    assert torch.equal(load_jaffe(whole).images, faces.images)


def test_the_codes_are_fer2013s_classes_in_its_order(tmp_path):
    for number, code in enumerate(("SA", "NE", "AN", "SU", "DI", "HA", "FE")):
        write(tmp_path / f"KA.{code}1.{number}.tiff", encoded(frame()))
    codes = [name[3:5] for name in load_jaffe(tmp_path).names]
    assert dict(zip(codes, CLASSES, strict=True)) == {
        "AN": "angry",
        "DI": "disgust",
        "FE": "fear",
        "HA": "happy",
        "SA": "sad",
        "SU": "surprise",
        "NE": "neutral",
    }


def test_the_box_is_averaged_down_as_torch_does_it(drawn, whole):
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


def test_shrinking_a_fine_pattern_leaves_its_mean(tmp_path):
    board = np.indices((256, 256)).sum(0) % 2 * 200
    write(tmp_path / "KA.AN1.39.tiff", encoded(board))
    image = load_jaffe(tmp_path).images.float()
    assert (image - 100).abs().max() < 12


def test_the_box_cuts_what_lies_outside_and_scales_with_the_image(tmp_path):
    for number, size in enumerate((256, 512, 128)):
        pixels = frame(0, size)
        scale = size / 256
        left, top, right, bottom = (int(edge * scale) for edge in BOX)
        pixels[top:bottom, left:right] = 200
        write(tmp_path / f"KA.AN{number + 1}.{number}.tiff", encoded(pixels))
    assert load_jaffe(tmp_path).images.unique().tolist() == [200]
    assert load_jaffe(tmp_path, crop=(0, 0, 50, 60)).images.unique().tolist() == [0]


def test_without_a_box_the_whole_frame_is_kept(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    write(tmp_path / "KA.AN1.39.tiff", encoded(pixels))
    assert (load_jaffe(tmp_path, crop=None).images[0, 0].numpy() == pixels).all()
    assert (load_jaffe(tmp_path).images[0, 0].numpy() != pixels).any()


def test_palette_and_colour_images_become_gray(tmp_path):
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
def test_the_synthetic_set_is_what_its_files_would_give(drawn, whole, monkeypatch, crop):
    monkeypatch.setattr("data.synthetic_cross.draw_jaffe", lambda: drawn)
    synthetic, read = load_jaffe("synthetic", crop=crop), load_jaffe(whole, crop=crop)
    assert torch.equal(synthetic.images, read.images)
    assert torch.equal(synthetic.labels, read.labels)
    assert (synthetic.names, synthetic.subjects) == (read.names, read.subjects)
    assert synthetic.sequences == read.sequences


def test_the_takes_of_an_expression_are_one_sequence(tmp_path):
    for name in ("KA.AN1.39.tiff", "KA.AN2.40.tiff", "KA.DI1.42.tiff", "KL.AN1.167.tiff"):
        write(tmp_path / name, encoded(frame()))
    assert load_jaffe(tmp_path).sequences == ["KA.AN", "KA.AN", "KL.AN", "KA.DI"]


def test_cropped_images_in_class_folders_are_read_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    write(tmp_path / "JAFFE" / "anger" / "KA.AN1.39.png", encoded(pixels, "PNG"))
    write(tmp_path / "JAFFE" / "Happiness" / "face 7.jpg", encoded(frame(60, 96), "JPEG"))
    write(tmp_path / "JAFFE" / "sadness" / "KL_SA2_160.bmp", encoded(frame(70, 48), "BMP"))
    write(tmp_path / "JAFFE" / "neutral" / "notes.txt", b"no image")
    faces = load_jaffe(tmp_path)
    assert [CLASSES[label] for label in faces.labels] == ["angry", "happy", "sad"]
    assert faces.names == ["KA.AN1.39.png", "face 7.jpg", "KL_SA2_160.bmp"]
    assert faces.subjects == ["KA", "", "KL"]
    assert faces.sequences == ["KA.AN", "Happiness/face 7.jpg", "KL.SA"]
    assert (faces.images[0, 0].numpy() == pixels).all()


def test_images_of_one_name_in_several_class_folders_are_no_sequence(tmp_path):
    for group in ("angry", "happy", "sad"):
        write(tmp_path / "faces" / group / "1.png", encoded(frame(60, 60), "PNG"))
    assert len(set(load_jaffe(tmp_path / "faces").sequences)) == 3


def test_folds_by_subject_are_refused_where_names_do_not_tell_subjects(tmp_path):
    for name in ("KA.AN1.39.png", "KL.AN1.40.png", "face.png"):
        write(tmp_path / "anger" / name, encoded(frame(), "PNG"))
    with pytest.raises(UserError, match=r"--mode finetune: 1 of 3 file names .* KA.AN1.39.tiff"):
        leave_one_subject_out(load_jaffe(tmp_path).subjects)


def test_cropped_images_of_any_shape_are_taken_whole(tmp_path):
    path = write(tmp_path / "sad" / "one.png", encoded(frame(90)[:200], "PNG"))
    lines = []
    assert load_jaffe(tmp_path, report=lines.append).images.unique().tolist() == [90]
    assert f"{tmp_path}: cropped images in class folders, taken whole" in lines
    assert f"--crop 1,2,3,4: {tmp_path} holds cropped" in refusal(tmp_path, crop=(1, 2, 3, 4))
    path.write_bytes(encoded(np.zeros((10, 4097)), "PNG"))
    assert "image of 4097x10, expected at most 4096 pixels" in refusal(tmp_path)


@pytest.mark.parametrize("name", CLASSES)
def test_folders_named_by_fer2013_give_its_labels(tmp_path, name):
    write(tmp_path / name / "one.png", encoded(frame(), "PNG"))
    assert load_jaffe(tmp_path).labels.tolist() == [CLASSES.index(name)]


def test_what_is_no_image_is_passed_over(tmp_path):
    write(tmp_path / "jaffe" / "KA.AN1.39.tiff", encoded(frame()))
    for name in ("README", "README_FIRST.txt", ".DS_Store", "Thumbs.db", "._KA.AN1.39.tiff"):
        write(tmp_path / "jaffe" / name, b"no image")
    write(tmp_path / "photo.png", b"beside the set")
    assert load_jaffe(tmp_path).names == ["KA.AN1.39.tiff"]


def test_other_counts_are_reported_in_one_line(whole):
    lines = []
    load_jaffe(whole, report=lines.append)
    assert len(lines) == 1
    assert "jaffedbase: counts differ from JAFFE's: angry 10 instead of 30" in lines[0]
    assert "disgust 10 instead of 29" in lines[0]


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_no_set_says_where_to_get_it(tmp_path, name):
    (tmp_path / "empty" / "jaffe").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    text = refusal(tmp_path / name)
    for part in (f"--data {tmp_path / name}", "JAFFE", "Zenodo", "data/", "--data synthetic"):
        assert part in text


@pytest.mark.parametrize("name", ["face.tiff", "KA.XX1.39.tiff", "KA.AN.39.tiff", "K\nA.tiff"])
def test_a_name_that_does_not_parse_is_refused(tmp_path, name):
    write(tmp_path / name, encoded(frame()))
    text = refusal(tmp_path)
    assert repr(name) in text
    assert "expected one such as KA.AN1.39.tiff" in text


@pytest.mark.parametrize("content", [b"", b"no image", encoded(frame())[:5000]])
@pytest.mark.parametrize("folder", [".", "sad"])
def test_an_unreadable_image_is_refused(tmp_path, content, folder):
    path = write(tmp_path / folder / "KA.SA1.39.tiff", content)
    assert f"{path}: unreadable image" in refusal(tmp_path)


def test_an_image_that_is_not_square_is_refused(tmp_path):
    path = write(tmp_path / "KA.AN1.39.tiff", encoded(frame()[:200]))
    assert f"{path}: image of 256x200, expected a square" in refusal(tmp_path)


def test_a_folder_that_is_no_class_is_refused(tmp_path):
    write(tmp_path / "fear" / "one.png", encoded(frame(), "PNG"))
    write(tmp_path / "contempt" / "two.png", encoded(frame(), "PNG"))
    assert f"{tmp_path / 'contempt'}: class folder 'contempt', expected one" in refusal(tmp_path)


def test_a_name_that_contradicts_its_folder_is_refused(tmp_path):
    path = write(tmp_path / "happy" / "KA.AN1.39.tiff", encoded(frame()))
    assert f"{path}: expression AN in the folder of HA" in refusal(tmp_path)


def test_class_folders_without_images_are_refused(tmp_path):
    (tmp_path / "happy").mkdir()
    assert f"{tmp_path}: class folders without images" in refusal(tmp_path)


@pytest.mark.parametrize("crop", [(-1, 0, 9, 9), (0, 0, 257, 9), (9, 0, 9, 9), (0, 9, 9, 8)])
def test_a_box_outside_the_frame_is_refused(whole, crop):
    assert ",".join(map(str, crop)) in refusal(whole, crop=crop)
