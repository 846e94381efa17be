"""A small random FER2013 in the forms of the real one, for the tests of its readers."""

from __future__ import annotations

import io
import logging
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import sets
from data.reading.sources import open_source
from data.types import CLASSES, SPLITS, Arrays
from runtime.errors import UserError
from runtime.logs import LOGGER_NAME

TAR_MODES = {
    ".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz", ".tar.bz2": "w:bz2"
}  # fmt: skip
ARCHIVES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz"]


def small_set(each: int = 2, seed: int = 0) -> Arrays:
    """`each` random images for each class of each split, in the order of the folder form."""
    count = len(SPLITS) * len(CLASSES) * each
    images = np.random.default_rng(seed).integers(0, 256, (count, 48, 48), dtype=np.uint8)
    labels = np.tile(np.repeat(np.arange(len(CLASSES), dtype=np.uint8), each), len(SPLITS))
    usage = np.repeat(np.arange(len(SPLITS), dtype=np.uint8), len(CLASSES) * each)
    return Arrays(images, labels, usage)


def table_rows(arrays: Arrays) -> list[list[str]]:
    """The fields emotion, pixels, Usage of every row, as text."""
    return [
        [str(label), " ".join(map(str, image.flatten().tolist())), SPLITS[usage]]
        for image, label, usage in zip(*arrays[:3], strict=True)
    ]


def table_text(rows: list[list[str]]) -> str:
    """`fer2013.csv` as distributed."""
    return "\n".join([",".join(row) for row in [["emotion", "pixels", "Usage"], *rows]]) + "\n"


def write_small_table(folder: Path, each: int) -> Path:
    """`folder`/fer2013.csv of `small_set(each)`."""
    path = folder / "fer2013.csv"
    path.write_text(table_text(table_rows(small_set(each))))
    return path


def image_bytes(image: np.ndarray, form: str = "PNG") -> bytes:
    """An encoded image; PNG keeps the pixels, JPEG changes them."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint8)).save(stream, form)
    return stream.getvalue()


def folder_images(arrays: Arrays, form: str = "PNG") -> dict[str, bytes]:
    """The folder form: contents by `train/<class>/Training_<number>.<suffix>`, in order."""
    suffix = {"PNG": "png", "JPEG": "jpg"}[form]
    files = {}
    for number, (image, label, usage) in enumerate(zip(*arrays[:3], strict=True), 100):
        folder = f"{'test' if usage else 'train'}/{CLASSES[label]}"
        files[f"{folder}/{SPLITS[usage]}_{number}.{suffix}"] = image_bytes(image, form)
    return files


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    """Write the files into a `.zip` or any of the tars, in the order given."""
    path.write_bytes(archived(path.name, files))
    return path


def archived(name: str, files: dict[str, bytes]) -> bytes:
    """The archive of `files` whose kind `name` ends in."""
    stream = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for member_name, content in files.items():
                archive.writestr(member_name, content)
        return stream.getvalue()
    mode = next(mode for suffix, mode in TAR_MODES.items() if name.endswith(suffix))
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for member_name, content in files.items():
            member = tarfile.TarInfo(member_name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write_form(folder: Path, form: str, files: dict[str, bytes]) -> Path:
    """A set named fer2013: a "folder", or an archive of that suffix."""
    if form == "folder":
        return write_folder(folder / "fer2013", files)
    return write_archive(folder / f"fer2013{form}", files)


def read_set(path: Path) -> Arrays:
    """The set at `path`, read without its cache."""
    with open_source(path, sets.LabelledSets()) as source:
        return sets.read_set(source)


def assert_same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """The same images, labels and usages, to the bit."""
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def refused(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The text of the error, which must be one line."""
    with pytest.raises(UserError) as raised:
        function(*arguments, **options)
    text = str(raised.value)
    assert text.isprintable()
    return text


@contextmanager
def logged() -> Iterator[list[str]]:
    """The lines that are logged in the block."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger(LOGGER_NAME)
    # Instead of those of a script, which may write to the stream of another test.
    handlers, level = logger.handlers, logger.level
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
