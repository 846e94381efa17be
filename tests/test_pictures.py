"""Pictures of every kind that pillow reads, to upright 8-bit grays and faces of 48x48."""

from __future__ import annotations

import os
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fer2013_files import logged
from PIL import Image

from auto_fernet.detection import FaceDetector
from auto_fernet.pictures import (
    SIDE,
    PictureError,
    Source,
    centre_face,
    cut_face,
    find_pictures,
    open_picture,
)
from data import types
from data.jaffe import BOX, load_jaffe
from data.reading import images
from data.reading.sources import open_source
from data.sets import LabelledSets
from data.synthetic.cross import draw_jaffe
from data.synthetic.writers import write_jaffe


def load_picture(source: Source, crop=None) -> np.ndarray:
    return centre_face(open_picture(source), crop)


def save(picture: Image.Image | np.ndarray, path: Path, **options) -> Path:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    picture.save(path, **options)
    return path


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


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("name, mode", [("x.png", "I;16"), ("x.tif", "I"), ("x.jp2", "I;16")])
def test_deep_grays_are_scaled_by_their_bits(bits, name, mode, face, tmp_path):
    deep = np.rint(face * ((2**bits - 1) / 255.0)).astype(np.int32)
    image = Image.fromarray(deep if mode == "I" else deep.astype(np.uint16))
    path = save(image, tmp_path / name)
    with logged() as lines:
        picture = load_picture(path)
    if name == "x.jp2" and bits < 16:  # its file states 16 bits, whatever the pixels are
        assert np.abs(picture.astype(int) - (deep / 257).round()).max() <= 1
        assert lines == []
        return
    decoded = [] if name == "x.jp2" else [images.decode_image(path, "x")]  # not of data sets
    for gray in (picture, *decoded):
        assert np.abs(gray.astype(int) - face).max() <= 1
    assert [f"{2**bits - 1}" in line for line in lines] == [True] * (bits < 16)


def test_guessed_depths_of_a_set_are_told(face, tmp_path):
    deep = Image.fromarray(np.rint(face * (4095 / 255.0)).astype(np.uint16))
    for name in ("happy", "sad"):
        (tmp_path / "train" / name).mkdir(parents=True)
        save(deep, tmp_path / "train" / name / "x.png")
    with open_source(tmp_path, LabelledSets()) as source:
        assert len(list(source.read())) == 2
        assert "2 images without a gray above 4095 are read as 12 bits" in source.notes


def test_stated_depths_are_used(face, tmp_path):
    """The highest value of a PGM and of a TIFF; TIFF of 12 bits; however dark the picture is."""
    dark = face.astype(np.uint16)
    pgm = b"P5 48 48 1023\n" + dark.astype(">u2").tobytes()
    (tmp_path / "x.pgm").write_bytes(pgm)
    assert np.abs(load_picture(tmp_path / "x.pgm") - face / 1023 * 255).max() <= 1
    save(Image.fromarray(dark), tmp_path / "x.tif", tiffinfo={281: 4095})
    assert np.abs(load_picture(tmp_path / "x.tif") - face / 4095 * 255).max() <= 1


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
    for name, deep in (("x.png", face), ("16.png", face.astype(np.uint16) * 257)):
        path = save(undone(deep), tmp_path / name, exif=exif)
        assert (load_picture(path) == face).all()
        assert (images.decode_image(path, name) == face).all()


def test_centred_square_of_any_size(face, tmp_path):
    assert SIDE == types.SIDE
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
    "huge.png": (png_of(2**30, 2**30), r"huge.png: Image size \(1152921504606846976 pixels\); exp"),
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    for read in (open_picture, FaceDetector) if find_spec("cv2") else (open_picture,):
        with pytest.raises(PictureError, match=r"x\.png: .*not a regular file"):
            read(tmp_path / "x.png")


def test_face_beyond_the_picture_repeats_its_edge(face):
    picture = Image.fromarray(face)
    assert (cut_face(picture, (0, 0, 48, 48)) == face).all()
    cut = cut_face(picture, (-24, 0, 48, 48))
    assert (cut[:, 24:] == face[:, :24]).all()
    assert (cut[:, :24] == face[:, :1]).all()
    with pytest.raises(PictureError, match="outside the picture of 48x48"):
        cut_face(picture, (48, 0, 9, 9))
