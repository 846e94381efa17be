"""A set of eight classes through every script, and networks of one set on another."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, run, weights

from utils import load_checkpoint

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral", "contempt")
SMALL = "--device cpu --init_channels 4 --layers 3 --batch_size 16"


def draw(label: int, generator: np.random.Generator) -> Image.Image:
    """48x48 stripes whose number and direction depend on the label, with noise."""
    y, x = np.mgrid[:48, :48] / 48
    along = x if label % 2 else y
    stripes = 128 + 100 * np.sin(2 * np.pi * (1 + label // 2) * along)
    noisy = np.clip(stripes + generator.normal(0, 8, (48, 48)), 0, 255)
    return Image.fromarray(noisy.astype("uint8"))


def write_set(folder: Path, classes: tuple[str, ...], each: int = 12) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", each), ("val", 4), ("test", 4)):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                draw(label, generator).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the drawn set `eight` and a network trained on it in saved_models/trained."""
    folder = tmp_path_factory.mktemp("classes")
    write_set(folder / "eight", CLASSES)
    command(folder, f"train_FER2013.py --data eight {SMALL} --epochs 12 --learning_rate 0.1 "
            "--drop_path_prob 0 --save trained")  # fmt: skip
    return folder


def command(folder: Path, words: str) -> str:
    script, *flags = words.split()
    head = ["-m", script] if script.startswith("tools.") else [str(ROOT / script)]
    cwd = ROOT if script.startswith("tools.") else folder
    done = run([sys.executable, *head, *flags], cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def refused(folder: Path, words: str) -> str:
    script, *flags = words.split()
    done = run([sys.executable, str(ROOT / script), *flags], cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def summary(folder: Path, name: str) -> dict:
    return json.loads((folder / "saved_models" / name / "summary.json").read_text())


def test_training_learns_eight_classes(place):
    figures = summary(place, "trained")["figures"]
    assert set(figures["PrivateTest"]["classes"]) == set(CLASSES)
    assert figures["PrivateTest"]["accuracy"] > 40  # chance is 12.5
    path = place / "saved_models" / "trained" / "best_val_weights.pt"
    assert load_checkpoint(path, ["weights"])["classes"] == list(CLASSES)
    report = (path.parent / "PrivateTest_report.txt").read_text()
    assert "contempt" in report


def test_search_finds_a_genotype(place):
    command(place, "search.py --data eight --device cpu --init_channels 4 --layers 3 --epochs 1 "
            "--limit_batches 1 --batch_size 8 --save found")  # fmt: skip
    assert summary(place, "found")["genotype"].startswith("Genotype(")
    command(place, f"train_FER2013.py --data eight {SMALL} --arch found --epochs 1 "
            "--limit_batches 1 --save from_found")  # fmt: skip


def test_softmax_relabelling_needs_no_fes(place):
    words = "relabel_training.py --data eight --device cpu --checkpoint trained --epochs 2 --save "
    printed = refused(place, f"{words} a")
    assert "--fes True: needs FER2013's classes" in printed
    command(place, f"{words} repaired --fes False --learning_rate 0.001")
    with (place / "saved_models" / "repaired" / "changes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 64
    assert sum(int(row["labels"]) for row in rows) == 8 * 12


def test_ensemble_and_predict_name_the_classes(place):
    command(place, "ensemble.py --data eight --device cpu --model_names trained,trained --save two")
    both = summary(place, "two")["figures"]["PrivateTest"]["accuracy"]
    assert both == summary(place, "trained")["figures"]["PrivateTest"]["accuracy"]
    path = place / "saved_models" / "trained"
    out = command(place, f"tools.predict {place}/eight/test/contempt --checkpoint {path} "
                  f"--device cpu --out {place}/out")  # fmt: skip
    assert "contempt" in out
    with (place / "out" / "predictions.csv").open() as file:
        header = next(csv.reader(file))
    assert header == ["picture", "expression", *CLASSES]


def test_another_set_needs_a_new_last_layer(place):
    weights(place / "seven.pt")
    words = (
        "relabel_training.py --data eight --device cpu --checkpoint seven --fes False --epochs 1"
    )
    printed = refused(place, f"{words} --limit_batches 1 --save b")
    assert "give --reset_classifier" in printed
    assert "contempt" in printed
    command(place, f"{words} --limit_batches 1 --reset_classifier --save reset")
    path = place / "saved_models" / "reset" / "weights.pt"
    assert len(load_checkpoint(path, ["weights"])["state_dict"]["classifier.weight"]) == 8
    assert summary(place, "reset")["details"]["relabel_threshold"] == 0
    same, more = words.replace("seven", "trained"), "--limit_batches 1 --reset_classifier --save"
    command(place, f"{same} {more} same")
    command(place, f"{words} {more} asked --relabel_threshold 0.3")
    used = [summary(place, name)["details"]["relabel_threshold"] for name in ("same", "asked")]
    assert used == [0.2, 0.3]
    command(place, f"relabel_training.py --data {place}/eight --resume reset")


def test_tests_of_fer2013_classes_refuse_others(place):
    for script in ("test_JAFFE.py", "test_CK48.py"):
        printed = refused(place, f"{script} --data synthetic --device cpu --checkpoint trained")
        assert "a network of the classes angry" in printed
    printed = refused(place, "ensemble.py --data synthetic --device cpu --model_names trained")
    assert "a network of the classes angry" in printed


# --- runs


def test_longer_run_after_the_end(place):
    words = f"train_FER2013.py --data eight {SMALL} --limit_batches 1 --epochs 2 --save short"
    command(place, words)
    printed = command(place, "train_FER2013.py --resume short --epochs 3")
    assert "--epochs 3 instead of 2" in printed
    assert summary(place, "short")["epochs"] == 3
    path = place / "saved_models" / "short" / "checkpoint.pt"
    assert load_checkpoint(path, ["training"])["epochs"] == 3
    assert "--epochs 1: contradicts" in refused(place, "train_FER2013.py --resume short --epochs 1")
    command(place, f"train_FER2013.py --resume {path}")


def test_several_gpus_point_to_torchrun(place):
    printed = refused(place, f"train_FER2013.py --data eight {SMALL} --gpu 0,1")
    assert "torchrun" in printed


# --- weights of other codes


def state(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path, ["weights"])["state_dict"]


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3},
    lambda s: {"net": s, "acc": 0.5},
    lambda s: {"model": s},
    lambda s: {f"module.{name}": value for name, value in s.items()},
    lambda s: {"state_dict": {f"_orig_mod.module.{name}": value for name, value in s.items()}},
    lambda s: {**s, "total_ops": torch.zeros(1), "cells.0.total_params": torch.zeros(1)},
    lambda s: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")},
])  # fmt: skip
def test_state_dicts_of_other_codes_load(wrap, tmp_path):
    from common.weights import load_trained

    own = state(weights(tmp_path / "own.pt"))
    torch.save(wrap(own), tmp_path / "other.pt")
    found = load_trained(tmp_path / "other.pt", init_channels=4, layers=3).model.state_dict()
    assert all(found[name].equal(value) for name, value in own.items())
