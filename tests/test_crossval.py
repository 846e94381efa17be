"""Tests on other data sets: which images, which answers, which figures."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from runs import here
from torch import nn

import relabel_training
import test_CK48
import test_JAFFE
from common import crossval, training
from common.fold_figures import summarise_folds, vote
from common.report import interval
from common.weights import Trained
from data.ck48 import load_ck48
from data.jaffe import BOX
from data.types import Faces
from runtime.errors import UserError


class Answers(nn.Module):
    """A network that answers neutral always, and fear if it may not."""

    num_parameters = 0
    description = {"genotype": ""}

    def forward(self, images):
        logits = torch.zeros(len(images), 7)
        logits[:, 6], logits[:, 2] = 2.0, 1.0
        return logits, None


def test_ck48_without_finetuning_scores_six_classes(place, monkeypatch, capsys):
    stub = Trained(Path("checkpoint.pt"), Answers(), epoch=0, epochs=0, drop_path_prob=None)
    monkeypatch.setattr(crossval, "load_start", lambda _: stub)
    monkeypatch.chdir(place)
    assert here(test_CK48, "--checkpoint checkpoint --mode evaluate --save as-it-is") == 0
    faces = load_ck48(place / "data")
    shared = faces.labels[faces.labels < 6].tolist()
    assert 0 < shared.count(2) < len(shared) < len(faces.labels)
    summary = json.loads((place / "saved_models" / "as-it-is" / "summary.json").read_text())
    found = summary["figures"]["CK48"]
    assert found["images"] == len(shared)
    assert found["accuracy"] == pytest.approx(100 * shared.count(2) / len(shared))
    # Every sequence has three frames here.
    assert found["sequence_accuracy"] == pytest.approx(found["accuracy"])
    assert set(found["classes"]) == {"anger", "disgust", "fear", "happy", "sadness", "surprise"}
    assert "top-1 accuracy in %" in capsys.readouterr().err


def test_sequence_vote_breaks_ties_by_probability():
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.2, 0.0],
                           [9.0, 0.0, 0.0]])  # fmt: skip
    sequences = ["a", "a", "a", "b", "b"]
    assert vote(logits, torch.tensor([1, 1, 1, 0, 0]), sequences) == 100.0
    assert vote(logits, torch.tensor([0, 0, 0, 0, 0]), sequences) == 50.0


def test_fold_figures_are_means_over_folds(tmp_path):
    faces = Faces(
        images=torch.zeros(8, 1, 48, 48, dtype=torch.uint8),
        labels=torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]),
        names=list("abcdefgh"),
        subjects=list("AAABBBCC"),
        sequences=list("ssstttuu"),
    )
    first = {
        "test_index": torch.tensor([0, 1, 2, 3]), "logits": torch.eye(3)[[0, 0, 1, 1]],
        "accuracy": 75.0, "oracle": 80.0, "subjects_shared": 2, "sequences_shared": 1,
    }  # fmt: skip
    second = {
        "test_index": torch.tensor([3, 4, 6]), "logits": torch.eye(3)[[0, 0, 2]],
        "accuracy": 100 / 3, "oracle": 60.0, "subjects_shared": 1, "sequences_shared": 0,
    }  # fmt: skip
    found = summarise_folds("set", [first, second], faces, ["x", "y", "z"], tmp_path)
    pooled = found.pop("pooled")
    assert (pooled["images"], pooled["accuracy"]) == (7, pytest.approx(400 / 7))
    mean = (75 + 100 / 3) / 2
    assert found == {
        "images": 7,
        "of": 8,
        "accuracy": pytest.approx(mean),
        "interval95": pytest.approx(interval(mean, 7)),
        "deviation": pytest.approx(75 - mean),
        "sequence_accuracy": pytest.approx(75.0),  # all of two, then one of two
        "sequence_deviation": pytest.approx(25.0),
        "oracle_accuracy": pytest.approx(70.0),
        "folds": [75.0, 100 / 3],
        "never_tested": 2,
        "tested_twice": 1,
        "subjects_shared": 3,
        "sequences_shared": 1,
    }


def test_drop_path_continues_from_checkpoint():
    told = Trained(Path(), Answers(), epoch=2, epochs=10, drop_path_prob=0.2)
    bare = Trained(Path(), Answers(), epoch=0, epochs=0, drop_path_prob=None)

    def at(trained, epoch, given=None):
        schedule = trained.drop_path(Namespace(epochs=60, drop_path_prob=given))
        return pytest.approx(schedule.at(epoch))

    assert [at(told, epoch) for epoch in (0, 3, 8, 50)] == [0.04, 0.1, 0.2, 0.2]
    assert [at(told, epoch, 0.5) for epoch in (0, 3, 8)] == [0.1, 0.25, 0.5]
    assert [at(bare, epoch) for epoch in (0, 30, 60)] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("module, script", [(training, relabel_training), (crossval, test_CK48)])
@pytest.mark.parametrize("flags, expected", [([], 0.04), (["--drop_path_prob", "0.5"], 0.1)])
def test_scripts_continue_drop_path(module, script, flags, expected, place, tmp_path, monkeypatch):
    taken = []

    def fit(train, *_, **__):
        taken.append(train.drop_path.at(0))
        raise UserError("this is enough")

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.chdir(place)
    argv = ["--checkpoint", "checkpoint", "--model_path", str(tmp_path), *flags]
    assert here(script, argv) == 2
    assert taken == [pytest.approx(expected)]


@pytest.mark.parametrize("flags, box", [
    ([], BOX), (["--crop", "none"], None), (["--crop", "1,2,30,40"], (1, 2, 30, 40)),
])  # fmt: skip
def test_crop_reaches_reader_of_jaffe(flags, box, place, monkeypatch):
    taken = []

    def load_jaffe(_, *, crop):
        taken.append(crop)
        raise UserError("this is enough")

    monkeypatch.setattr(test_JAFFE, "load_jaffe", load_jaffe)
    assert here(test_JAFFE, ["--checkpoint", str(place / "checkpoint"), *flags]) == 2
    assert taken == [box]


def test_crop_is_four_numbers_or_none(capsys):
    for wrong in ("1,2", "a,b,c,d", "-1,0,9,9", "0,0,257,9", "9,0,9,9"):
        with pytest.raises(SystemExit):
            test_JAFFE.build_parser().parse_args([f"--crop={wrong}"])
        assert f"{wrong} found, LEFT,TOP,RIGHT,BOTTOM" in capsys.readouterr().err
