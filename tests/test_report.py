"""The report of a split: names of classes, parts, calibration, pictures that cannot be drawn."""

from __future__ import annotations

import pytest
import torch

from common import report
from common.calibration import calibration_bins, expected_calibration_error
from common.report import format_table, report_split, rows_on_images
from data.batches import subsample
from data.types import Split
from engine import Scores, evaluate
from runtime.run import Run, autocast

NAMES = ["accuracy", "macro avg", "weighted avg", "micro avg", "$\\frac$", "表情", "a,b"]
LABELS = torch.arange(7)


def test_classes_may_be_called_like_entries_of_scikit_learn(tmp_path):
    logits = torch.eye(7)
    logits[0] = logits[1]  # the first class is taken for the second
    found = report_split("x", Scores(logits, LABELS), NAMES, tmp_path)
    assert list(found["classes"]) == NAMES
    assert [row["recall"] for row in found["classes"].values()] == [0, 1, 1, 1, 1, 1, 1]
    assert found["classes"]["macro avg"]["precision"] == 0.5
    assert all(name in (tmp_path / "x_report.txt").read_text("utf-8") for name in NAMES)
    assert (tmp_path / "x_confusion.png").stat().st_size > 10_000


@pytest.mark.parametrize("error", [MemoryError(), ValueError("no font")])
def test_picture_that_cannot_be_drawn_loses_no_table(error, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise error

    monkeypatch.setattr(report, "draw_confusion", fail)
    monkeypatch.setattr(report.log, "propagate", True)
    found = report_split("x", Scores(torch.eye(7), LABELS), NAMES, tmp_path)
    assert found["accuracy"] == 100
    assert {path.suffix for path in tmp_path.iterdir()} == {".txt", ".csv"}
    assert f"a picture or page could not be written ({type(error).__name__}" in caplog.text


def test_part_of_a_split_says_of_how_many(tmp_path):
    whole = Split(torch.zeros(3589, 1, 48, 48, dtype=torch.uint8), torch.arange(3589) % 7)
    run = Run(tmp_path, torch.device("cpu"), autocast(torch.device("cpu"), "off"))
    scores = {
        name: evaluate(lambda images: torch.zeros(len(images), 7), split.to("cpu"), 512, run)
        for name, split in (("part", subsample(whole, 640)), ("whole", whole))
    }
    found = {name: report_split(name, each, NAMES, tmp_path) for name, each in scores.items()}
    assert (found["part"]["images"], found["part"]["of"]) == (640, 3589)
    assert "of" not in found["whole"]
    first = (tmp_path / "part_report.txt").read_text("utf-8").splitlines()[0]
    assert "of 640 of 3,589 images" in first
    table = format_table(["", *scores], rows_on_images("x", scores))
    assert table.splitlines()[-1].split() == "images 640 of 3,589 3,589".split()
    assert rows_on_images("x", {"whole": scores["whole"]}) == []


def test_calibration_error_equals_the_plain_one():
    torch.manual_seed(0)
    scores = Scores(3 * torch.randn(500, 7), torch.randint(7, (500,)))
    scores.logits[0] *= 1e3  # a probability of one is in the last bin
    probabilities = scores.logits.double().softmax(dim=1)
    expected = 0.0
    for low in range(15):
        rows = [
            k
            for k, row in enumerate(probabilities)
            if low <= 15 * row.max() < low + 1 + (low == 14)
        ]
        if rows:
            confidence = sum(probabilities[k].max().item() for k in rows)
            correct = sum(int(probabilities[k].argmax() == scores.labels[k]) for k in rows)
            expected += 100 * abs(confidence - correct) / 500
    bins = calibration_bins(scores)
    assert bins["images"].sum() == 500
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_report_says_calibration_and_draws_it(tmp_path):
    # Sure of every image, right on six of seven.
    logits = 50 * torch.eye(7)
    logits[0] = logits[1]
    found = report_split("x", Scores(logits, LABELS), NAMES, tmp_path)
    assert found["calibration_error"] == pytest.approx(100 / 7)
    assert "calibration error 14.29 %" in (tmp_path / "x_report.txt").read_text("utf-8")
    assert (tmp_path / "x_reliability.png").stat().st_size > 5_000
