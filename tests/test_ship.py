"""Weights that come with the code: shipped from a run, described, verified, and found by name."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from runs import ROOT, TRAIN, command, run, weights

import ensemble
from common import cli, manifest
from common.manifest import CHECKPOINTS, read_manifest, verify, write_entry
from common.weights import find_weights, load_trained
from data.fer2013 import SPLITS, load_fer2013
from engine import autocast, evaluate_splits
from tools import export_weights as ship
from utils import Stop, UserError

BARE = {"layers": None, "init_channels": None, "arch": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, a run `t` on it, and what was shipped of it."""
    folder = tmp_path_factory.mktemp("place")
    data = write_small_table(folder, each=6)
    more = ["--epochs", "1", "--save", "t", "--seed", "7", "--ema", "0.5"]
    done = run(command(TRAIN, data, folder, *more))
    assert done.returncode == 0, done.stderr
    done = run(ship_words(folder, "t", "tiny"))
    assert done.returncode == 0, done.stderr
    assert "--tta tencrop" in done.stdout
    return folder


def ship_words(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "tools.export_weights", *words, "--data", str(folder), "--model_path",
            str(folder), "--out", str(folder / "checkpoints"), "--device", "cpu"]  # fmt: skip


def test_an_entry_says_where_the_weights_come_from(place):
    entry = json.loads((place / "checkpoints" / "MANIFEST.json").read_text())["tiny"]
    path = place / "checkpoints" / "tiny.pt"
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry["command"].startswith("python train_FER2013.py --data ")
    assert "--ema 0.5" in entry["command"]
    assert (entry["file"], entry["seeds"], entry["epochs"]) == ("tiny.pt", [7], 1)
    assert f"torch {torch.__version__}" in entry["machine"]
    assert entry["commit"] is None or len(entry["commit"].removesuffix("-dirty")) == 40
    assert entry["images"] == {"PublicTest": 42, "PrivateTest": 42}
    assert entry["from"] == {}


def test_the_weights_that_a_run_learnt_from_are_recorded_and_must_be_there(place, tmp_path):
    for seed, name in enumerate(("start", "one", "two")):
        weights(tmp_path / f"{name}.pt", seed=seed)
    flags = {"checkpoint": "start", "teacher": ["one", "start"], "model_path": str(tmp_path)}
    assert ship.source_digests(flags) == {
        name: hashlib.sha256((tmp_path / f"{name}.pt").read_bytes()).hexdigest()
        for name in ("start", "one")
    }
    (tmp_path / "one.pt").unlink()
    with pytest.raises(UserError, match=r"RUN's --teacher one: no weights found"):
        ship.source_digests(flags)
    (tmp_path / "start.pt").unlink()
    with pytest.raises(UserError, match=r"RUN's --checkpoint start: no weights found"):
        ship.source_digests(flags)


def test_the_shipped_network_is_the_best_one_without_its_auxiliary_head(place):
    best = load_trained(place / "t" / "best_val_weights.pt", **BARE)
    shipped = load_trained(place / "checkpoints" / "tiny.pt", **BARE)
    assert not shipped.model.auxiliary
    kept = shipped.model.state_dict()
    assert kept.keys() == {n for n in best.model.state_dict() if "auxiliary" not in n}
    assert all(value.equal(best.model.state_dict()[name]) for name, value in kept.items())
    splits = load_fer2013(place)
    entry = read_manifest(place / "checkpoints")["tiny"]
    options = {"batch_size": 7, "precision": autocast(torch.device("cpu"), "off"), "stop": Stop()}
    for tta in ("none", "flip", "tencrop"):
        scored = evaluate_splits(best.model, splits, tta=tta, **options)
        for name in SPLITS[1:]:
            assert entry["accuracy"][tta][name] == pytest.approx(scored[name].accuracy)
    assert entry["synthetic"].keys() == {"PublicTest", "PrivateTest"}
    assert (shipped.epoch, shipped.epochs, shipped.drop_path_prob) == (1, 1, 0.5)


def test_half_precision_is_half_the_size_and_loads_and_replaces_the_entry(place):
    whole = load_trained(place / "checkpoints" / "tiny.pt", **BARE).model.state_dict()
    write_entry(place / "checkpoints", "other", {"file": "other.pt", "sha256": "0"})
    for dtype in ("fp32", "fp16"):
        words = [*ship_words(place, "t", "again")[3:], "--dtype", dtype]
        assert cli.run(ship.main, ship.build_parser(), words) == 0
    entries = read_manifest(place / "checkpoints")
    assert entries.keys() == {"tiny", "other", "again"}
    assert entries["tiny"]["accuracy"].keys() == entries["again"]["accuracy"].keys()
    half = torch.load(place / "checkpoints" / "again.pt", weights_only=True)["state_dict"]
    assert half["classifier.weight"].dtype == torch.float16
    found = load_trained(place / "checkpoints" / "again.pt", **BARE).model.state_dict()
    for name, value in whole.items():
        expected = value.half().float() if value.is_floating_point() else value
        assert found[name].equal(expected)
        assert found[name].dtype == value.dtype


def test_shipped_weights_are_found_by_name_and_a_users_own_come_first(place, monkeypatch, capsys):
    monkeypatch.setattr("common.weights.CHECKPOINTS", place / "checkpoints")
    monkeypatch.chdir(place)
    assert find_weights("--checkpoint", "tiny", "nowhere") == place / "checkpoints" / "tiny.pt"
    words = ["--data", str(place), "--model_names", "tiny", "--model_path", str(place / "runs")]
    assert cli.run(ensemble.main, ensemble.build_parser(), words) == 0
    weights(place / "runs" / "tiny.pt")
    assert find_weights("--checkpoint", "tiny", "runs") == Path("runs/tiny.pt")
    with pytest.raises(UserError, match=r"checkpoints/else\.pt"):
        find_weights("--checkpoint", "else", "nowhere")


def test_a_file_that_is_not_what_the_manifest_says_is_refused(tmp_path):
    path = weights(tmp_path / "x.pt")
    write_entry(tmp_path, "x", {"file": "x.pt", "sha256": manifest.digest(path)})
    verify(path)
    load_trained(path, **BARE)
    weights(path, seed=1)
    with pytest.raises(UserError, match=r"x\.pt: sha256 .* expected .* of x; get the file again"):
        load_trained(path, **BARE)
    load_trained(weights(tmp_path / "y.pt"), **BARE)


@pytest.mark.parametrize("text", ["{", "[1]", '{"x": 3}', '{"x": {"file": "x.pt"}}', "[" * 100_000])
def test_a_manifest_that_is_none_is_one_line(text, tmp_path):
    (tmp_path / "MANIFEST.json").write_text(text)
    with pytest.raises(UserError, match=r"MANIFEST\.json: ") as raised:
        read_manifest(tmp_path)
    assert "\n" not in str(raised.value)


WRONG = {
    "a path for a name": (["t", "../x"], ["'../x'"]),
    "no such run": (["u", "x"], ["RUN u: no weights found"]),
    "no run but weights": (["tiny.pt", "x"], ["checkpoint.pt", "no such file"]),
}


@pytest.mark.parametrize("words, named", WRONG.values(), ids=WRONG)
def test_an_error_is_one_line_and_status_2(words, named, place, tmp_path, capsys):
    weights(place / "tiny.pt")
    argv = [*ship_words(place, *words)[3:], "--out", str(tmp_path / "out")]
    assert cli.run(ship.main, ship.build_parser(), argv) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert all(part in last for part in named), last
    assert not (tmp_path / "out").exists()


def test_too_much_for_a_repository_is_refused_before_anything_is_written(
    place, monkeypatch, tmp_path
):
    monkeypatch.setattr(ship, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="at most 1,000; try --dtype fp16"):
        ship.write_weights(place / "t" / "best_val_weights.pt", tmp_path / "x.pt", torch.float32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", read_manifest(CHECKPOINTS))
def test_the_weights_in_the_repository_give_the_figures_of_the_manifest(name):
    entry = read_manifest(CHECKPOINTS)[name]
    path = find_weights("--checkpoint", name, str(ROOT / "nowhere"))
    assert path.stat().st_size < 10_000_000
    assert {"command", "commit", "machine", "seeds", "epochs", "accuracy"} <= entry.keys()
    model = load_trained(path, **BARE).model
    splits = load_fer2013("synthetic")
    del splits["Training"]
    options = {"batch_size": 64, "precision": autocast(torch.device("cpu"), "off"), "stop": Stop()}
    for split, scores in evaluate_splits(model, splits, **options).items():
        # Another machine's rounding may turn an image or two.
        assert scores.accuracy == pytest.approx(entry["synthetic"][split], abs=0.6)
