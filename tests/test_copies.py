"""Test images that are in Training too: told, reported without, and left out on request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fer2013_files import logged, small_set, table_rows, table_text
from runs import weights

import ensemble
import train_FER2013
from common.cli import run_script
from common.report import rows_on_images, split_headline
from data.sets import load_set
from engine import Scores
from utils import load_checkpoint


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with two PublicTest images and one PrivateTest image in Training."""
    arrays = small_set()
    for usage, numbers in ((1, [0, 2]), (2, [1])):
        rows = np.flatnonzero(arrays.usage == usage)[numbers]
        arrays.images[rows] = arrays.images[numbers]
    path = tmp_path / "fer2013.csv"
    path.write_text(table_text(table_rows(arrays)))
    return path


def test_copies_are_marked_and_told(table):
    with logged() as lines:
        splits = load_set(table).splits
    assert (
        f"{table}: 2 of PublicTest and 1 of PrivateTest are pixel for pixel in Training too"
        in lines
    )
    assert splits["Training"].copies is None
    # The oracle: every pair of images, one by one.
    for name in ("PublicTest", "PrivateTest"):
        expected = [
            any(torch.equal(image, other) for other in splits["Training"].images)
            for image in splits[name].images
        ]
        assert splits[name].copies.tolist() == expected


def test_training_without_copies(table):
    whole, rest = load_set(table).splits, load_set(table, without_copies=True).splits
    test = [*whole["PublicTest"].images, *whole["PrivateTest"].images]
    kept = [k for k, image in enumerate(whole["Training"].images)
            if not any(torch.equal(image, other) for other in test)]  # fmt: skip
    assert len(kept) == len(whole["Training"].images) - 3
    assert torch.equal(rest["Training"].images, whole["Training"].images[kept])
    assert torch.equal(rest["Training"].labels, whole["Training"].labels[kept])
    assert rest["PublicTest"].copies is None
    assert torch.equal(rest["PrivateTest"].images, whole["PrivateTest"].images)


def test_figures_without_copies():
    logits = torch.eye(4)
    labels, copies = torch.tensor([0, 1, 0, 0]), torch.tensor([True, False, False, False])
    scores = Scores(logits, labels, copies)
    found = split_headline(scores)
    assert (found["accuracy"], found["images"]) == (50, 4)
    assert found["without_copies"]["accuracy"] == pytest.approx(100 / 3)
    assert found["without_copies"]["images"] == 3
    (row,) = rows_on_images("x", {"a": scores, "b": Scores(logits, labels)})
    assert row[1:] == [pytest.approx(100 / 3), ""]
    for none in (None, torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)):
        assert Scores(logits, labels, none).without_copies() is None
        assert rows_on_images("x", {"a": Scores(logits, labels, none)}) == []


def test_reports_of_scripts_name_the_accuracy_without_copies(table, tmp_path, capsys):
    weights(tmp_path / "a.pt")
    common = ["--data", str(table), "--model_path", str(tmp_path), "--device", "cpu"]
    words = ["--model_names", "a", "--save", "e", *common]
    assert run_script(ensemble.main, ensemble.build_parser(), words) == 0
    assert "without copies of Training" in capsys.readouterr().err
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    figures = summary["figures"]["PublicTest"]
    assert figures["images"] - figures["without_copies"]["images"] == 2
    assert summary["details"]["members"][0]["figures"]["PublicTest"] == {
        key: figures[key] for key in ("accuracy", "interval95", "images", "without_copies")
    }
    report = (tmp_path / "e" / "PublicTest_report.txt").read_text()
    assert f"of the {figures['without_copies']['images']} that are not in Training" in report


def test_drop_copies_of_a_training(table, tmp_path, capsys):
    words = ["--data", str(table), "--model_path", str(tmp_path), "--device", "cpu", "--save", "t",
             "--epochs", "1", "--init_channels", "2", "--layers", "3",
             "--drop_copies"]  # fmt: skip
    assert run_script(train_FER2013.main, train_FER2013.build_parser(), words) == 0
    printed = capsys.readouterr().err
    count = len(load_set(table).splits["Training"].images)
    assert f"Training without them: {count - 3} of {count} images" in printed
    assert "without copies of Training" not in printed
    assert load_checkpoint(tmp_path / "t" / "checkpoint.pt", ["training"])["args"]["drop_copies"]
