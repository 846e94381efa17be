"""Weights that come with the code: exported from a run, described, verified, found by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from runs import ROOT, TRAIN, command, finish, here, weights

import ensemble
import relabel_training
from common.manifest import digest, publish, read_manifest
from common.training import EVALUATED
from common.weights import CHECKPOINTS, find_weights, load_trained
from data.sets import load_set
from engine import evaluate_splits
from recipe.views import TTA
from runtime.errors import UserError
from runtime.run import Run, autocast
from tools import export_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, a run `t` on it, and what was exported of it."""
    folder = tmp_path_factory.mktemp("place")
    data = write_small_table(folder, each=6)
    more = ["--epochs", "1", "--save", "t", "--seed", "7", "--ema", "0.5"]
    # Its recorded command is that of the process.
    finish(command(TRAIN, data, folder, *more), folder / "t.log")
    assert here(export_weights, export(folder, "t", "tiny")) == 0
    return folder


def export(folder: Path, *words: str) -> list[str]:
    """The command line after `python -m tools.export_weights`."""
    return [*words, "--data", str(folder), "--model_path", str(folder), "--out",
            str(folder / "checkpoints"), "--device", "cpu"]  # fmt: skip


def test_entry_tells_where_the_weights_come_from(place):
    entry = json.loads((place / "checkpoints" / "MANIFEST.json").read_text())["tiny"]
    assert entry["sha256"] == digest(place / "checkpoints" / "tiny.pt")
    assert entry["command"].startswith("python train_FER2013.py --data ")
    assert "--ema 0.5" in entry["command"]
    assert (entry["file"], entry["seeds"], entry["epochs"]) == ("tiny.pt", [7], 1)
    assert f"torch {torch.__version__}" in entry["machine"]
    assert entry["commit"] is None or len(entry["commit"].removesuffix("-dirty")) == 40
    assert entry["images"] == {"PublicTest": 42, "PrivateTest": 42}
    assert entry["from"] == {}


def test_sources_are_recorded_and_must_exist(tmp_path):
    for seed, name in enumerate(("start", "one")):
        weights(tmp_path / f"{name}.pt", seed)
    flags = {"checkpoint": "start", "teacher": ["one", "start"], "model_path": str(tmp_path)}
    expected = {name: digest(tmp_path / f"{name}.pt") for name in ("start", "one")}
    assert export_weights.source_digests(flags) == expected
    for flag, name in (("--teacher", "one"), ("--checkpoint", "start")):
        (tmp_path / f"{name}.pt").unlink()
        with pytest.raises(UserError, match=rf"RUN's {flag} {name}: no weights found"):
            export_weights.source_digests(flags)


def test_exported_network_is_the_best_without_auxiliary_head(place):
    best = load_trained(place / "t" / "best_val_weights.pt")
    exported = load_trained(place / "checkpoints" / "tiny.pt")
    assert not exported.model.auxiliary
    kept = exported.model.state_dict()
    assert kept.keys() == {n for n in best.model.state_dict() if "auxiliary" not in n}
    assert all(value.equal(best.model.state_dict()[name]) for name, value in kept.items())
    assert (exported.epoch, exported.epochs, exported.drop_path_prob) == (1, 1, 0.5)
    splits = load_set(place).splits
    entry = read_manifest(place / "checkpoints")["tiny"]
    here = Run(place, CPU, autocast(CPU, "off"))
    for tta in TTA:
        scored = evaluate_splits(best.model, splits, 7, here, tta)
        for name in EVALUATED:
            assert entry["accuracy"][tta][name] == pytest.approx(scored[name].accuracy)
    assert entry["synthetic"].keys() == set(EVALUATED)


def test_half_precision_replaces_the_entry_of_the_name(place, monkeypatch, capsys):
    # The synthetic set is large.
    monkeypatch.setattr(export_weights, "load_set", lambda path: load_set(place))
    folder = place / "checkpoints"
    whole = load_trained(folder / "tiny.pt").model.state_dict()
    publish(weights(place / "other.pt"), folder, "other", {})
    for dtype in ("fp32", "fp16"):
        words = [*export(place, "t", "again"), "--dtype", dtype]
        assert here(export_weights, words) == 0
    assert "--tta tencrop" in capsys.readouterr().out
    entries = read_manifest(folder)
    assert entries.keys() == {"tiny", "other", "again"}
    assert entries["tiny"]["accuracy"].keys() == entries["again"]["accuracy"].keys()
    half = torch.load(folder / "again.pt", weights_only=True)["state_dict"]
    assert half["classifier.weight"].dtype == torch.float16
    found = load_trained(folder / "again.pt").model.state_dict()
    for name, value in whole.items():
        expected = value.half().float() if value.is_floating_point() else value
        assert found[name].equal(expected)
        assert found[name].dtype == value.dtype


def test_epochs_of_a_run_that_went_on_are_its_own(place, tmp_path, monkeypatch):
    monkeypatch.setattr(export_weights, "load_set", lambda path: load_set(place))
    words = f"--checkpoint {place}/t --save on --fes False --relabel_threshold 0 --epochs 2".split()
    paths = ["--data", str(place), "--model_path", str(tmp_path), "--device", "cpu"]
    assert here(relabel_training, [*words, *paths]) == 0
    assert load_trained(tmp_path / "on" / "weights.pt").epoch == 3
    assert here(export_weights, ["on", "on", *paths, "--out", str(tmp_path / "out")]) == 0
    entry = read_manifest(tmp_path / "out")["on"]
    summary = json.loads((tmp_path / "on" / "summary.json").read_text())
    assert (entry["chosen_epoch"], entry["epochs"]) == (summary["details"]["chosen_epoch"], 2)


def test_weights_of_another_run_are_refused(place, capsys):
    (place / "mixed").mkdir()
    shutil.copy(place / "t" / "checkpoint.pt", place / "mixed")
    path = weights(place / "mixed" / "best_val_weights.pt")
    assert here(export_weights, export(place, "mixed", "mixed")) == 2
    assert f"{path}: ValueError: of another run" in capsys.readouterr().err
    assert "mixed" not in read_manifest(place / "checkpoints")


def test_a_users_own_weights_come_first(place, monkeypatch):
    monkeypatch.setattr("common.weights.CHECKPOINTS", place / "checkpoints")
    monkeypatch.chdir(place)
    assert find_weights("--checkpoint", "tiny", "nowhere") == place / "checkpoints" / "tiny.pt"
    words = ["--data", str(place), "--model_names", "tiny", "--model_path", str(place / "runs")]
    assert here(ensemble, words) == 0
    weights(place / "runs" / "tiny.pt")
    assert find_weights("--checkpoint", "tiny", "runs") == Path("runs/tiny.pt")
    with pytest.raises(UserError, match=r"checkpoints/else\.pt"):
        find_weights("--checkpoint", "else", "nowhere")


def test_another_file_than_the_manifest_says_is_refused(tmp_path):
    path = publish(weights(tmp_path / "draft.pt"), tmp_path, "x", {})
    for known in (path, weights(tmp_path / "y.pt")):
        load_trained(known)
    weights(path, seed=1)
    with pytest.raises(UserError, match=r"x\.pt: sha256 .* expected .* of x; get the file again"):
        load_trained(path)


@pytest.mark.parametrize("text", ["{", "[1]", '{"x": {"file": "x.pt"}}', "[" * 100_000])
def test_malformed_manifest_is_one_line(text, tmp_path):
    (tmp_path / "MANIFEST.json").write_text(text)
    with pytest.raises(UserError, match=r"MANIFEST\.json: ") as raised:
        read_manifest(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("words, named", [
    (["t", "../x"], ["'../x'"]),
    (["u", "x"], ["RUN u: no weights found"]),
    (["tiny.pt", "x"], ["checkpoint.pt", "no such file"]),
], ids=["a path for a name", "no such run", "weights for a run"])  # fmt: skip
def test_errors_are_one_line_and_write_nothing(words, named, place, tmp_path, capsys):
    weights(place / "tiny.pt")
    argv = [*export(place, *words), "--out", str(tmp_path / "out")]
    assert here(export_weights, argv) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert all(part in last for part in named), last
    assert not (tmp_path / "out").exists()


def test_shipped_weights_give_the_figures_of_the_manifest(tmp_path):
    splits = load_set("synthetic").splits
    del splits["Training"]
    run = Run(tmp_path, CPU, autocast(CPU, "off"))
    for name, entry in read_manifest(CHECKPOINTS).items():
        path = find_weights("--checkpoint", name, str(ROOT / "nowhere"))
        assert path.stat().st_size < 10_000_000
        assert {"command", "commit", "machine", "seeds", "epochs", "accuracy"} <= entry.keys()
        for split, scores in evaluate_splits(load_trained(path).model, splits, 64, run).items():
            # Another machine's rounding may turn an image or two.
            assert scores.accuracy == pytest.approx(entry["synthetic"][split], abs=0.6), name
