"""A small random FER2013 in the forms of the real one, for the tests of its readers."""

from __future__ import annotations

import io
import logging
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from data.readers import Arrays
from data.types import CLASSES, SPLITS
from utils import LOGGER_NAME

TAR_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz"}


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
    Image.fromarray(image).save(stream, form)
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
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    mode = next(mode for suffix, mode in TAR_MODES.items() if path.name.endswith(suffix))
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@contextmanager
def logged() -> Iterator[list[str]]:
    """The lines that are logged in the block."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger(LOGGER_NAME)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
