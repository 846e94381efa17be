"""What several tests of scripts start from."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fer2013_files import write_small_table
from PIL import Image
from rank_runs import EACH, in_double
from runs import weights

from data import augment, batches
from data.synthetic import cross, writers
from data.synthetic.fer2013 import draw_fer2013
from data.types import SPLITS

# What started the tests, such as nohup, may ignore signals, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: data/ with every set, saved_models/, a checkpoint."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    (folder / "saved_models").mkdir()
    write_small_table(folder / "data", each=4)
    # Ten people at the least, for as many folds.
    ck48 = cross.draw_ck48(subjects=12, sequences=24)
    writers.write_ck48(ck48, folder / "data" / "CK+48")
    writers.write_jaffe(cross.draw_jaffe(takes=1), folder / "data" / "jaffe")
    weights(folder / "checkpoint.pt")
    for seed, name in enumerate(("model1", "model2")):
        weights(folder / "saved_models" / f"{name}.pt", seed, layers=12)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small FER2013 for several processes; other files draw their own."""
    return write_small_table(tmp_path_factory.mktemp("data"), each=EACH)


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A synthetic face, uint8 (48, 48)."""
    return draw_fer2013(counts=dict.fromkeys(SPLITS, 1))["Training"].images[0, 0].numpy()


@pytest.fixture(scope="module")
def heads() -> list[Image.Image]:
    """Synthetic heads and shoulders, 256x256."""
    return [Image.fromarray(x[0]) for x in cross.draw_jaffe(takes=1).images.numpy()[::20]]


@pytest.fixture
def double() -> Iterator[None]:
    """`in_double` for the oracle."""
    before = augment.to_float
    in_double()
    yield
    torch.set_default_dtype(torch.float32)
    augment.to_float = batches.to_float = before
