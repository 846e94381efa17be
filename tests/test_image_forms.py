"""Images in the forms and modes that users have: read with their grays, without warnings."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from auto_fernet.pictures import centre_face, open_picture
from data.reading.images import decode_image
from runtime.errors import UserError

GRAYS = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return decode_image(io.BytesIO(content), "x.png")


def test_deep_palette_and_transparent_images_keep_their_grays():
    gray, palette = Image.fromarray(GRAYS), Image.fromarray(255 - GRAYS)
    palette.putpalette([255 - index // 3 for index in range(768)])
    deep = Image.fromarray(GRAYS.astype(np.uint16) * 257)
    empty = Image.fromarray(np.zeros((48, 48), np.uint8))
    for image in (palette, deep, Image.merge("LA", (gray, empty))):
        assert np.array_equal(decoded(encoded(image, "PNG")), GRAYS)


def test_images_are_read_or_refused_without_warnings(recwarn, tmp_path):
    gray, turned = Image.fromarray(GRAYS), Image.Exif()
    turned[0x0112] = 6
    wide = Image.fromarray(np.zeros((9000, 9000), np.uint8))
    deep = Image.fromarray(GRAYS.astype(np.uint16) * 257)
    small = [
        *(encoded(gray, form) for form in ("PNG", "JPEG", "TIFF", "BMP", "GIF")),
        *(encoded(gray.convert(mode), "PNG") for mode in ("RGBA", "LA", "1")),
        encoded(gray.convert("P"), "PNG", transparency=3),
        *(encoded(deep, form) for form in ("PNG", "TIFF")),
        encoded(Image.fromarray(np.float32(GRAYS) / 255), "TIFF"),
        encoded(gray.convert("CMYK"), "JPEG"),
        encoded(gray, "JPEG", exif=turned),
        encoded(gray, "GIF", save_all=True, append_images=[gray] * 3),
    ]
    large = [encoded(wide, "PNG"), encoded(wide, "TIFF", compression="tiff_adobe_deflate")]
    read = 0
    for content in [*small, *large]:
        (tmp_path / "i").write_bytes(content)
        assert centre_face(open_picture(tmp_path / "i")).shape == (48, 48)
        with suppress(UserError):
            read += decoded(content).shape == (48, 48)
    assert 5 < read <= len(small)
    assert not recwarn.list
