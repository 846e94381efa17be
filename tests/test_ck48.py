"""CK+48: read back pixel for pixel, and one-line errors, which those of JAFFE resemble."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fer2013_files import image_bytes, logged, refused, write_archive, write_folder
from PIL import Image

from data.ck48 import load_ck48
from data.jaffe import load_jaffe
from data.synthetic.cross import draw_ck48
from data.synthetic.writers import write_ck48
from data.types import CK_CLASSES


@pytest.fixture(scope="module")
def drawn():
    return draw_ck48(subjects=6, sequences=24)


@pytest.fixture
def small(tmp_path):
    """One image a class, each of another subject, in `CK+48` below the folder returned."""
    write_folder(tmp_path, {
        f"CK+48/{name}/S{label:03d}_001_00000009.png": image_bytes(np.full((48, 48), 10 * label))
        for label, name in enumerate(CK_CLASSES)
    })  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("inner", [".", "CK+48", "CK+48/CK+48", "ck+", "CKPLUS"])
def test_read_back_sorted_by_class_and_name(tmp_path, drawn, inner):
    (tmp_path / inner).parent.mkdir(parents=True, exist_ok=True)
    write_ck48(drawn, tmp_path / inner)
    faces = load_ck48(tmp_path)
    order = sorted(range(72), key=lambda row: (drawn.labels[row].item(), drawn.names[row]))
    assert faces.images.dtype == torch.uint8
    assert faces.images.shape == (72, 1, 48, 48)
    assert faces.labels.dtype == torch.int64
    assert torch.equal(faces.images, drawn.images[order])
    assert torch.equal(faces.labels, drawn.labels[order])
    assert faces.names == [drawn.names[row] for row in order]
    assert faces.subjects == [drawn.subjects[row] for row in order]
    assert faces.sequences == [name[:8] for name in faces.names]
    assert [faces.sequences.count(name) for name in set(faces.sequences)] == [3] * 24
    split = faces.split(torch.tensor([5, 2]))
    assert torch.equal(split.images, faces.images[[5, 2]])
    assert torch.equal(split.labels, faces.labels[[5, 2]])


def test_synthetic_equals_its_files(tmp_path):
    write_ck48(draw_ck48(), tmp_path / "CK+48")
    drawn, read = load_ck48("synthetic"), load_ck48(tmp_path)
    assert drawn.digest() == read.digest()
    assert (drawn.subjects, drawn.sequences) == (read.subjects, read.sequences)


def test_other_files_are_named_or_skipped(small):
    for name in ("Thumbs.db", ".DS_Store", "readme.txt", "._S010_004_00000017.png"):
        (small / "CK+48" / "fear" / name).write_bytes(b"no image")
    (small / "photo.png").write_bytes(b"beside the set")
    eighth = {f"S010_004_0000001{number}.png": image_bytes(np.eye(48)) for number in range(3)}
    write_folder(small / "CK+48" / "neutral", eighth)
    with logged() as lines:
        assert len(load_ck48(small).names) == 7
    (line,) = [line for line in lines if "left out" in line]
    assert line.startswith(f"{small}/CK+48: left out: ")
    assert "1 .txt files" in line
    assert "3 images in 'neutral'" in line
    (counts,) = [line for line in lines if "counts differ" in line]
    for part in ("CK+48: counts", "anger 1 instead of 135", "contempt 1 instead of 54"):
        assert part in counts
    assert len(lines) == 2


@pytest.mark.parametrize("name", ["CK+48.zip", "archive (1).zip", "ckplus.tar.gz", "CK48"])
def test_archive(small, name):
    expected = load_ck48(small)
    files = {f"CK+48/{path.parent.name}/{path.name}": path.read_bytes()
             for path in (small / "CK+48").glob("*/*.png")}  # fmt: skip
    written = write_archive(small / ("x.zip" if name == "CK48" else name), files)
    shutil.rmtree(small / "CK+48")
    written.rename(small / name)
    assert load_ck48(small).digest() == load_ck48(small / name).digest() == expected.digest()


@pytest.mark.parametrize("load, folder, name", [
    (load_ck48, "anger", "S100_001_0000000{}.png"), (load_jaffe, ".", "KA.AN{0}.{0}.tiff")
])  # fmt: skip
def test_colour_and_palette_become_gray(small, load, folder, name):
    root = small / "CK+48" if load is load_ck48 else small / "jaffe"
    size = 48 if load is load_ck48 else 256
    (root / folder).mkdir(exist_ok=True)
    grays = np.add.outer(np.arange(size), np.arange(size)).astype(np.uint8)
    palette = Image.fromarray(255 - grays)
    palette.putpalette([255 - index // 3 for index in range(768)])
    colour = Image.fromarray(np.stack([grays] * 3, axis=-1))
    for number, image in enumerate((Image.fromarray(grays), palette, colour), 1):
        image.save(root / folder / name.format(number))
    faces = load(root)
    (first,) = [row for row, found in enumerate(faces.names) if found == name.format(1)]
    gray, from_palette, from_colour = faces.images[first : first + 3]
    assert load is load_jaffe or (gray[0].numpy() == grays).all()
    assert torch.equal(gray, from_palette)
    assert torch.equal(gray, from_colour)


@pytest.mark.parametrize("load, name", [
    (load_ck48, "S010_004_00000017.jpg"), (load_ck48, "happy\n1.png"),
    (load_jaffe, "KA.XX1.39.tiff"), (load_jaffe, "KA.AN.39.tiff"),
])  # fmt: skip
def test_file_name_does_not_parse(small, load, name):
    root, example = small / "CK+48", "happy/S010_004_00000017.png"
    if load is load_jaffe:
        root, example = small / "jaffe", "KA.AN1.39.tiff"
    write_folder(root, {str(Path(example).with_name(name)): image_bytes(np.zeros((256, 256)))})
    text = refused(load, root)
    assert repr(name) in text
    assert f"expected one such as {Path(example).name}" in text


@pytest.mark.parametrize("load, name, source", [
    (load_ck48, "CK+48", "Kaggle"), (load_jaffe, "JAFFE", "Zenodo")
])  # fmt: skip
def test_nothing_found(tmp_path, load, name, source):
    for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "file"):
        if path.name == "empty":
            (path / name.lower()).mkdir(parents=True)
        if path.name == "file":
            path.write_bytes(b"")
        text = refused(load, path)
        for part in (f"{path}: no ", name, source, "data/", "--data synthetic"):
            assert part in text


def test_missing_class_and_name_in_two(small):
    folder, name = small / "CK+48", "S002_001_00000009.png"
    shutil.copy(folder / "fear" / name, folder / "happy" / name)
    assert f"{folder}: {name} in the folders fear and happy" in refused(load_ck48, small)
    (folder / "fear" / name).unlink()
    (folder / "fear" / "Thumbs.db").write_bytes(b"")
    text = refused(load_ck48, small)
    assert f"{folder}: no image in a class folder fear; expected some" in text
    shutil.rmtree(folder / "fear")
    assert "in each of anger, disgust, fear" in refused(load_ck48, small)
