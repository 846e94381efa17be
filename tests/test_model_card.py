"""The model card of weights, from their manifest and evaluations."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from runs import here, weights

import ensemble
import test_CK48
import test_JAFFE
from common.manifest import publish, read_manifest
from common.page import read_summary
from common.weights import CHECKPOINTS
from data.types import CLASSES
from tools import model_card


@pytest.fixture(scope="module")
def runs(place) -> Path:
    """Evaluations of the weights `tiny` on three sets, and those that the card does not take."""
    (place / "weights").mkdir()
    publish(weights(place / "draft.pt"), place / "weights", "tiny", {"parameters": 12345})
    tiny, other = place / "weights" / "tiny.pt", weights(place / "other.pt", seed=1)
    for script, save, words in (
        (ensemble, "fer", f"--model_names {tiny}"),
        (ensemble, "crops", f"--model_names {tiny} --tta tencrop"),
        (ensemble, "bf16", f"--model_names {tiny} --amp bf16"),
        (ensemble, "part", f"--model_names {tiny} --limit_batches 1 --batch_size 8"),
        (ensemble, "two", f"--model_names {tiny},{other}"),
        (ensemble, "other", f"--model_names {other}"),
        (test_CK48, "ck48", f"--mode evaluate --checkpoint {tiny}"),
        (test_JAFFE, "jaffe", f"--checkpoint {tiny}"),
        (test_JAFFE, "adapted", f"--checkpoint {tiny} --adapt_batch_norm"),
    ):
        common = f"--data {place / 'data'} --model_path {place / 'runs'} --device cpu --amp off"
        assert here(script, f"{common} {words} --save {save}") == 0
    return place / "runs"


@pytest.fixture
def folder(place, runs, tmp_path) -> Path:
    """The weights, with a manifest that has no evaluations."""
    return shutil.copytree(place / "weights", tmp_path / "weights")


def cells(folder: Path, title: str) -> list[str]:
    """The cells of the rows of this title, in the card of one network."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^\| {re.escape(title)} \| (.*) \|$", card, re.M)


def test_figures_of_runs_go_into_manifest_and_card(runs, folder):
    paths = [runs / name for name in ("fer", "crops", "ck48", "jaffe")]
    assert here(model_card, [*map(str, paths), "--out", str(folder)]) == 0
    kept = read_manifest(folder)["tiny"]["evaluations"]
    for summary in filter(None, map(read_summary, paths)):
        for split, figure in summary["figures"].items():
            stored = kept[split][summary["details"]["tta"]]
            recall = {name: 100 * each["recall"] for name, each in figure["classes"].items()}
            assert (stored["recall"], stored["accuracy"]) == (recall, figure["accuracy"])
            assert stored["calibration_error"] == figure["calibration_error"]
    private, jaffe = (kept[split]["none"] for split in ("PrivateTest", "JAFFE"))
    top1 = f"{private['accuracy']:.2f} ± {private['interval95']:.2f}"
    assert cells(folder, "PrivateTest, one view") == [top1]
    (crops,) = cells(folder, "PrivateTest, ten crops")
    assert crops.startswith(f"{kept['PrivateTest']['tencrop']['accuracy']:.2f} ")
    assert cells(folder, "calibration error, JAFFE") == [f"{jaffe['calibration_error']:.2f}"]
    for name in CLASSES:
        expected = [f"{each['recall'][name]:.1f}" for each in (private, jaffe)]
        assert cells(folder, name) == expected
    assert cells(folder, "parameters") == ["12,345"]
    assert str(runs) not in (folder / "README.md").read_text("utf-8") + json.dumps(kept)


def test_card_says_what_was_not_measured(folder):
    before = (folder / "MANIFEST.json").read_bytes()
    assert here(model_card, ["--out", str(folder)]) == 0
    assert (folder / "MANIFEST.json").read_bytes() == before
    assert cells(folder, "PrivateTest, one view") == ["not measured"]
    assert cells(folder, "fear") == ["not measured"] * 2


@pytest.mark.parametrize("name", ["bf16", "part", "two", "other", "adapted", "none"])
def test_other_runs_are_refused(name, runs, folder, capsys):
    before = (folder / "MANIFEST.json").read_bytes()
    assert here(model_card, [str(runs / name), "--out", str(folder)]) == 2
    line = capsys.readouterr().err.strip().split("\n")[-1]
    assert str(runs / name) in line
    assert "expected" in line
    assert (folder / "MANIFEST.json").read_bytes() == before


def test_shipped_card_is_that_of_the_manifest(tmp_path):
    shutil.copy(CHECKPOINTS / "MANIFEST.json", tmp_path)
    shipped = (CHECKPOINTS / model_card.CARD).read_text(encoding="utf-8")
    assert model_card.write_card(tmp_path).read_text(encoding="utf-8") == shipped
    assert all((CHECKPOINTS / link).is_file() for link in re.findall(r"\]\((.*?)\)", shipped))
