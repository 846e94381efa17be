"""Relabelling, ensembles and the tests on other data sets, by their command lines."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import command, cut, ended, finish, here, read, same, weights

import ensemble
import relabel_training
import test_CK48
import test_JAFFE
from engine import Scores
from relabelling import PUBLISHED_FES, TRAINING_FES, choose_fes, save_fes


def summary_of(place: Path, label: str) -> dict:
    return json.loads((place / "saved_models" / label / "summary.json").read_text())


def timeless(folds: list[dict]) -> list[dict]:
    return [{k: v for k, v in fold.items() if k != "seconds"} for fold in folds]


def relabelled(label: str, *flags: str) -> dict:
    """The record of the last epoch of a short relabelling in the working folder."""
    argv = ["--checkpoint", "checkpoint", "--epochs", "2", "--limit_batches", "2", "--batch_size",
            "16", "--learning_rate", "0.001", "--save", label, *flags]  # fmt: skip
    assert here(relabel_training, argv) == 0
    return summary_of(Path(), label)["details"]["last_epoch"]


def test_relabelling_continues_checkpoint_and_counts_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights(Path("checkpoint.pt"))
    record = relabelled("on", "--data", "synthetic", "--fes", "False", "--relabel_threshold", "0.9")
    assert record["changed"] > 0
    assert record["labels"] == 32
    found = torch.load("saved_models/on/weights.pt", weights_only=True)
    assert (found["epoch"], found["epochs"], found["drop_path_prob"]) == (4, 10, 0.2)
    table = Path("saved_models/on/changes.csv").read_text(encoding="utf-8").strip().split("\n")
    moved = sum(int(n) for _, a, b, n in (row.split(",") for row in table[1:]) if a != b)
    assert moved == record["changed"]


def test_threshold_and_fes_limit_relabelling(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    for name, matrix in (("alike", np.ones((7, 7))), ("apart", np.eye(7))):
        save_fes(matrix, tmp_path / name)
    doubt = ["--relabel_threshold", "0.9"]
    free = relabelled("free", *doubt, "--fes", "False")["changed"]
    assert free > 0
    given = {
        name: relabelled(name, *doubt, "--fes_matrix", str(tmp_path / name))["changed"]
        for name in ("alike", "apart")
    }
    assert given == {"alike": free, "apart": 0}
    used = {name: summary_of(place, name)["details"]["fes_matrix"] for name in ("free", "apart")}
    assert used == {"free": None, "apart": str(tmp_path / "apart")}
    assert here(relabel_training, ["--fes", "False", "--fes_matrix", str(tmp_path / "apart")]) == 2
    for protocol, expected in (("clean", TRAINING_FES), ("paper", PUBLISHED_FES)):
        assert choose_fes(None, protocol) is expected
        own = choose_fes(str(tmp_path / "apart"), protocol)
        assert own.tolist() == np.eye(7).tolist()


def test_relabelling_resumes_exactly(tmp_path):
    weights(tmp_path / "start.pt")
    words = command(
        "relabel_training.py --data synthetic --epochs 3 --limit_batches 3 --batch_size 8 "
        "--relabel_threshold 0.9 --report_freq 1 --ema 0.8 --affine 0.1 --teacher {out}/start "
        "--model_path {out}".split(), "", tmp_path,
        "--checkpoint", str(tmp_path / "start"),
    )  # fmt: skip
    finish([*words, "--save", "whole"], tmp_path / "whole.log")
    broken = [*words, "--save", "cut"]
    assert cut(broken, "epoch 2 step 1/", signal.SIGTERM, tmp_path / "cut.log")[0] == 143
    finish([*words, "--resume", "cut"], tmp_path / "resumed.log")
    ends = [read(tmp_path / label) for label in ("whole", "cut")]
    assert same(ends[0]["state_dict"], ends[1]["state_dict"])
    assert same(ends[0]["state"]["extra"], ends[1]["state"]["extra"])


def test_ensemble_averages_logits():
    labels = torch.tensor([0, 1, 1])
    first = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 1.0]])
    members = [Scores(logits, labels) for logits in (first, second)]
    averaged = ensemble.mean_scores(members)
    assert averaged.logits.equal((first + second) / 2)
    assert averaged.accuracy == 100.0
    assert [member.accuracy for member in members] != [100.0, 100.0]
    assert ensemble.agreement(members)[0] == [100.0, pytest.approx(100 / 3)]
    assert ensemble.agreement([members[0]] * 2) == [[100.0, 100.0]] * 2
    # One of three answers is mended: the deviation of 0, 100 and 0 is 100 √2 / 3.
    gained = {"points": 100 / 3, "interval95": 1.96 * 100 * 2**0.5 / 3 / 3**0.5}
    assert ensemble.gain(averaged, members[0]) == pytest.approx(gained)
    assert ensemble.gain(members[0], averaged)["points"] == pytest.approx(-100 / 3)


def test_ensemble_of_twins_is_the_twin(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert here(ensemble, "--model_names checkpoint,checkpoint.pt --save twins") == 0
    found = summary_of(place, "twins")
    for split in ("PublicTest", "PrivateTest"):
        own = {member["figures"][split]["accuracy"] for member in found["details"]["members"]}
        assert own == {found["figures"][split]["accuracy"]}
        assert found["details"]["agreement"][split] == [[100.0, 100.0]] * 2
        assert found["details"]["gain"][split] == [{"points": 0.0, "interval95": 0.0}] * 2
    printed = capsys.readouterr().err
    assert "points above member 2, ± 95 %" in printed
    assert "+0.00 ± 0.00" in printed
    assert here(ensemble, ["--model_names", "model1, model3"]) == 2
    assert "--model_names model3" in capsys.readouterr().err


def test_ck48_protocols_and_finished_folds(place, tmp_path):
    words = command(
        "test_CK48.py --checkpoint checkpoint --epochs 1 --limit_batches 1 --folds 3".split(),
        "", place,
    )  # fmt: skip
    finish([*words, "--save", "paper", "--protocol", "paper"], tmp_path / "paper.log", place)
    finish([*words, "--save", "clean"], tmp_path / "clean.log", place)
    clean = summary_of(place, "clean")["figures"]["CK48"]
    assert (clean["subjects_shared"], clean["never_tested"], clean["tested_twice"]) == (0, 0, 0)
    assert len(clean["folds"]) == 3
    assert clean["accuracy"] == pytest.approx(sum(clean["folds"]) / 3)
    assert summary_of(place, "paper")["figures"]["CK48"]["subjects_shared"] > 0
    # A run that lost its last fold.
    path = place / "saved_models" / "clean" / "checkpoint.pt"
    whole = torch.load(path, weights_only=True)
    torch.save({**whole, "folds": whole["folds"][:2]}, path)
    again = [*words[:2], "--resume", "clean"]
    printed = finish(again, tmp_path / "resumed.log", place)
    assert "fold 2 of 3" not in printed
    assert "fold 3 of 3" in printed
    found = torch.load(path, weights_only=True)
    assert same(timeless(whole["folds"]), timeless(found["folds"]))
    # Other weights in the place of those that the run began with.
    start = place / "checkpoint.pt"
    before = start.read_bytes()
    weights(start, seed=7)
    status, printed = ended(again, tmp_path / "weights.log", place)
    start.write_bytes(before)
    assert status == 2
    assert "--checkpoint checkpoint: no longer what" in printed
    # Other faces in the place of those that the folds are of.
    status, printed = ended([*again, "--data", "synthetic"], tmp_path / "data.log", place)
    assert status == 2
    assert "--data synthetic: no longer what" in printed


def test_fold_resumes_exactly(place, tmp_path):
    words = command(
        "test_CK48.py --checkpoint checkpoint --epochs 2 --limit_batches 2 --batch_size 8 "
        "--folds 2 --report_freq 1 --ema 0.8 --mixup 0.4 --erasing 0.5".split(), "", place,
    )  # fmt: skip
    finish([*words, "--save", "unbroken"], tmp_path / "unbroken.log", place)
    broken = [*words, "--save", "broken"]
    stopped, printed = cut(broken, "epoch 2 step 1/", signal.SIGTERM, tmp_path / "cut.log", place)
    assert stopped == 143
    assert "; saved" in printed
    printed = finish([*words[:2], "--resume", "broken"], tmp_path / "resumed.log", place)
    assert "epoch 1/2" not in printed.split("fold 2 of 2")[0]
    unbroken, broken = (
        timeless(read(place / "saved_models" / label)["folds"]) for label in ("unbroken", "broken")
    )
    assert same(unbroken, broken)


def test_jaffe_leaves_one_subject_out(place, monkeypatch):
    monkeypatch.chdir(place)
    argv = "--checkpoint checkpoint --mode finetune --epochs 1 --limit_batches 1 --save others"
    assert here(test_JAFFE, argv) == 0
    figures = summary_of(place, "others")["figures"]["JAFFE"]
    assert len(figures["folds"]) == 10
    assert figures["subjects_shared"] == 0


class Payload:
    """What unpickling would run."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


WRONG = {
    "another width": (["--init_channels", "8"], ["--init_channels 8", "contradicts"]),
    "another genotype": (["--arch", "DARTS_V2"], ["--arch DARTS_V2", "contradicts"]),
    "no such file": (["--checkpoint", "nowhere"], ["--checkpoint nowhere", "nowhere.pt"]),
    "eight classes": (
        ["--checkpoint", "eight"],
        ["eight.pt", "of the classes 0, 1, 2", "expected angry"],
    ),
    "code": (["--checkpoint", "code"], ["code.pt: holds more than tensors", "was not run"]),
    "a bare dict of another width": (
        ["--checkpoint", "bare", "--init_channels", "8"],
        ["--init_channels 8: contradicts bare.pt", "which says 4"],
    ),
}


@pytest.mark.parametrize("flags, named", WRONG.values(), ids=WRONG)
def test_wrong_checkpoint_is_one_line(flags, named, place, capsys, monkeypatch, recwarn):
    monkeypatch.chdir(place)
    weights(place / "eight.pt", num_classes=8)
    # Of a newer pickle than its own, torch warns.
    torch.save({"state_dict": Payload()}, "code.pt", pickle_protocol=4)
    torch.save(torch.load("checkpoint.pt", weights_only=True)["state_dict"], "bare.pt")
    before = sorted((place / "saved_models").iterdir())
    # relabel_training.py asks the data for the classes, and so reads it first.
    scripts = (test_CK48, test_JAFFE, relabel_training)[: 2 if "eight" in flags else 3]
    for script in scripts:
        assert here(script, ["--checkpoint", "checkpoint", *flags]) == 2
        line = capsys.readouterr().err.strip().split("\n")[-1]
        assert all(part in line for part in named), line
    assert sorted((place / "saved_models").iterdir()) == before
    assert not (place / "ran").exists()
    assert not [w for w in recwarn if w.category is UserWarning], "a warning is another line"
    if "bare" in flags:
        assert (
            here(test_JAFFE, "--checkpoint bare.pt --init_channels 4 --layers 3 --save bare") == 0
        )
