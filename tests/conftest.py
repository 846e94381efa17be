"""What several tests of scripts start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from fer2013_files import write_small_table
from runs import weights

from data import synthetic_cross, writers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: data/ with every set, saved_models/, a checkpoint."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    (folder / "saved_models").mkdir()
    write_small_table(folder / "data", each=4)
    # Ten people at the least, for as many folds.
    ck48 = synthetic_cross.draw_ck48(subjects=12, sequences=24)
    writers.write_ck48(ck48, folder / "data" / "CK+48")
    writers.write_jaffe(synthetic_cross.draw_jaffe(takes=1), folder / "data" / "jaffe")
    weights(folder / "checkpoint.pt")
    for seed, name in enumerate(("model1", "model2")):
        weights(folder / "saved_models" / f"{name}.pt", seed, layers=12)
    return folder
