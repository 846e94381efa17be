"""Damaged and hostile files: every reader returns a value or raises a UserError."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from fer2013_files import image_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image
from runs import weights

from auto_fernet.pictures import PictureError, centre_face, open_picture
from common.manifest import read_manifest
from common.weights import load_trained
from data.reading.cache import cache_path
from data.reading.images import decode_image
from data.sets import load_set
from data.synthetic.writers import write_archive, write_csv
from data.types import CLASSES, SPLITS, Split
from data.votes import VOTES_OF_CLASSES, load_votes
from genotypes import Auto_FERNet, format_genotype, load_genotype
from relabelling import TRAINING_FES, load_fes
from runtime.errors import UserError

GRAYS = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
GRAY = Image.fromarray(GRAYS)
SIZES = {"layers": 3, "init_channels": 4}  # of `runs.weights`
TABLES = st.sampled_from([",", "\n", "\r", '"', "\0", "é", "-1", "256", "nan", "9" * 400, "0 0"])
SYNTAX = st.sampled_from(["()", "[" * 300, "'", "range(0, 10**12)", "__import__('os')", "9" * 5000])


def damaged(sample: bytes) -> SearchStrategy[bytes]:
    """`sample` after up to four edits: parts cut, replaced, or pieces of text inserted."""
    pieces = st.binary(max_size=8) | (TABLES | SYNTAX).map(str.encode)
    places = st.integers(0, len(sample)) | st.integers(0, min(200, len(sample)))
    edits = st.lists(st.tuples(places, st.integers(0, 64), pieces), min_size=1, max_size=4)

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        content = bytearray(sample)
        for place, size, piece in edits:
            content[place : place + size] = piece
        return bytes(content)

    return edits.map(apply) | st.integers(0, len(sample)).map(lambda length: sample[:length])


class Reader(NamedTuple):
    """How a file of this name is read, and what writes a valid one."""

    file: str
    read: Callable[[Path], Any]
    write: Callable[[Path], Any]


def faces() -> dict[str, Split]:
    images = torch.from_numpy(GRAYS)[None, None]
    return {name: Split(images, torch.tensor([label])) for label, name in enumerate(SPLITS)}


def write_text(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text)


def write_legacy(path: Path) -> None:
    """A bare state dict as torch saved it before 1.6: without check sums."""
    state = torch.load(weights(path), weights_only=True)["state_dict"]
    torch.save(state, path, _use_new_zipfile_serialization=False)


def write_cache(path: Path) -> None:
    write_csv(faces(), path.with_name("fer2013.csv"))
    load_set(path.with_name("fer2013.csv"))


def read_cached(path: Path) -> None:
    found = load_set(path.with_name("fer2013.csv")).splits["PublicTest"]
    assert np.array_equal(found.images[0, 0].numpy(), GRAYS), "not as in the source"


VOTES = ",".join(("Usage", "Image name", *VOTES_OF_CLASSES)) + "\nTraining,x.png,1,0,2,0,0,3,4"
READERS = {
    "table": Reader("fer2013.csv", load_set, lambda path: write_csv(faces(), path)),
    **{suffix: Reader(f"fer2013.{suffix}", load_set, lambda path: write_archive(faces(), path))
       for suffix in ("zip", "tar", "tar.xz")},
    "cache": Reader(cache_path(Path("fer2013.csv")).name, read_cached, write_cache),
    "votes": Reader("votes.csv", load_votes, write_text(VOTES)),
    "similarities": Reader("fes.csv", load_fes,
                           write_text(pd.DataFrame(TRAINING_FES, CLASSES, CLASSES).to_csv())),
    "genotype": Reader("g.txt", load_genotype, write_text(format_genotype(Auto_FERNet))),
    "weights": Reader("w.pt", load_trained, weights),
    "old weights": Reader("w.pt", lambda path: load_trained(path, **SIZES), write_legacy),
    "manifest": Reader("MANIFEST.json", lambda path: read_manifest(path.parent),
                       write_text(json.dumps({"w": {"file": "w.pt", "sha256": "0"}}))),
    **{form: Reader("i", lambda path: decode_image(path, "i"),
                    lambda path, form=form: path.write_bytes(image_bytes(GRAYS, form)))
       for form in ("PNG", "JPEG", "TIFF")},
    "picture": Reader("i.png", lambda path: centre_face(open_picture(path)), GRAY.save),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_damaged_file_is_a_value_or_a_user_error(name, tmp_path):
    reader, path = READERS[name], tmp_path / READERS[name].file
    reader.write(path)
    reader.read(path)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(damaged(path.read_bytes()))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(UserError, PictureError):
            reader.read(path)

    read()
