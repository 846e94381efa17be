"""tools.compare: differences by seed, the table and the picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from test_collect import ARGS, summary

from common import cli
from runtime.run import Progress
from tools import compare
from utils import save_checkpoint


def training(folder: Path, seed: int, *accuracies: float, **args) -> str:
    """The run folder of a training with these PublicTest accuracies, one per epoch."""
    folder.mkdir()
    found = summary(seed, accuracies[-1], epochs=len(accuracies))
    (folder / "summary.json").write_text(json.dumps(found))
    records = [
        {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 50.0, "seconds": 60.0,
         "PublicTest_accuracy": each, "PrivateTest_accuracy": each + 1}
        for epoch, each in enumerate(accuracies, 1)
    ]  # fmt: skip
    state = Progress(epoch=len(records), history=records).to_dict()
    content = {"args": {**ARGS, **args}, "state": state}
    save_checkpoint(folder / "checkpoint.pt", "training", content)
    return str(folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two variants: the second is better by 2, 3 and 7 points."""
    paper = [training(tmp_path / f"paper_{seed}", seed, 30.0, value)
             for seed, value in enumerate((40.0, 60.0, 50.0))]  # fmt: skip
    ema = [training(tmp_path / f"ema_{seed}", seed, 34.0, value, ema=0.9)
           for seed, value in enumerate((42.0, 63.0, 57.0))]  # fmt: skip
    return paper + ema


def compared(*argv: str) -> dict:
    return compare.main(compare.build_parser().parse_args(list(argv)))


def test_differences_by_seed(runs, tmp_path, capsys):
    found = compared(*runs, *runs, "--out", str(tmp_path / "out"))
    assert list(found) == ["paper", "ema"]
    assert found["ema"]["seeds"] == [0, 1, 2]
    public = found["ema"]["figures"]["PublicTest"]
    assert public["mean"] == pytest.approx(54.0)
    assert public["difference"]["mean"] == pytest.approx(4.0)
    # The variance of 2, 3 and 7 is 7; 4.303 is the quantile of t for two degrees of freedom.
    assert public["difference"]["interval95"] == pytest.approx(4.303 * (7 / 3) ** 0.5, rel=1e-3)
    assert found["paper"]["figures"]["PublicTest"]["difference"] is None
    assert found["ema"]["settings"] == "--ema 0.9"
    assert found["ema"]["minutes"] == pytest.approx(2.0)
    printed = capsys.readouterr().out
    assert "+4.00 ± 6.57" in printed
    assert "+4.00 ± 6.57*" not in printed
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert [row["arm"] for row in rows] == ["paper", "ema"]
    assert float(rows[1]["PrivateTest_difference"]) == pytest.approx(4.0)
    assert rows[0]["PrivateTest_difference"] == ""
    with Image.open(tmp_path / "out" / "compare.png") as picture:
        assert picture.width > 1000


def test_star_marks_interval_without_zero(tmp_path, capsys):
    runs = [training(tmp_path / f"{name}{seed}", seed, 40.0 + seed + more)
            for name, more in (("a-", 0.0), ("b-", 3.0)) for seed in (0, 1)]  # fmt: skip
    training(tmp_path / "c-7", 7, 90.0)
    found = compared(*runs, str(tmp_path / "c-7"))
    printed = capsys.readouterr().out
    assert "+3.00 ± 0.00*" in printed
    # No seed in common with the reference.
    assert found["c"]["figures"]["PublicTest"]["difference"] is None


@pytest.mark.parametrize("spoil, told", [
    (lambda run: (run / "summary.json").unlink(), "no summary.json, expected a training"),
    (lambda run: save_checkpoint(run / "checkpoint.pt", "training", {"args": ARGS, "state": {}}),
     "expected the checkpoint of a run"),
    (lambda run: (run / "checkpoint.pt").unlink(), "checkpoint.pt"),
    (lambda run: training(run.parent / "x", 1, 1.0, learning_rate=1.0, ema=0.9)
     and (run.parent / "x/checkpoint.pt").replace(run / "checkpoint.pt"),
     "--learning_rate 1.0, but"),
])  # fmt: skip
def test_other_runs_are_refused(spoil, told, runs, tmp_path, capsys):
    spoil(tmp_path / "ema_1")
    assert cli.run_script(compare.main, compare.build_parser(), runs) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "ema_1") in line
    assert told in line


def test_picture(runs, tmp_path):
    formula = r"$\frac$"  # drawn as it is
    figures = [each["figures"] for each in compared(*runs).values()]
    figure = compare.draw_comparison(
        {"paper": [30, 50], formula: [34, 54]},
        {"paper": figures[0], formula: figures[1]},
        tmp_path / "c.png",
    )
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["paper", formula]
    assert len(right.containers) == 2
    assert [tick.get_text() for tick in right.get_yticklabels()] == [formula]
