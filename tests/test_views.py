"""Test-time augmentation: the mean over written-out views, in every script that evaluates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from runs import TRAIN, command
from test_engine import CPU, parse
from torch import Tensor, nn
from torch.nn import functional as F

import ensemble
import test_JAFFE
import train_FER2013
from common import cli, crossval
from common.weights import Trained, load_trained
from data.sets import load_set
from data.types import CLASSES, Faces, Split
from engine import evaluate_splits
from recipe.views import TTA, tta_predict, views
from runtime.run import Run, autocast


class Corners(nn.Module):
    """Sees where things are: its logits are of the 2x2 means of an image."""

    num_parameters, description = 35, {"genotype": "none"}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.linear(F.adaptive_avg_pool2d(x, 2).flatten(1)), None


def plain_views(image: Tensor, tta: str) -> list[Tensor]:
    """The oracle: the views of one image (1, 48, 48), written out."""
    mirror = image.flip(-1)
    if tta == "none":
        return [image]
    if tta == "flip":
        return [image, mirror]
    corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    return [x[:, r : r + 44, c : c + 44] for x in (image, mirror) for r, c in corners]


@torch.no_grad()
def oracle(model: nn.Module, images: Tensor, tta: str) -> Tensor:
    rows = []
    for image in images / 255.0:
        logits = [model(view[None])[0][0] for view in plain_views(image, tta)]
        rows.append(sum(logits) / len(logits))
    return torch.stack(rows)


@pytest.mark.parametrize("tta, count", [("none", 1), ("flip", 2), ("tencrop", 10)])
def test_views(tta, count):
    images = torch.rand(3, 1, 48, 48)
    found = views(images, tta)
    assert len(found) == count
    for k, image in enumerate(images):
        expected = plain_views(image, tta)
        assert all(any(view[k].equal(each) for each in expected) for view in found)
        assert all(any(view[k].equal(each) for view in found) for each in expected)


@pytest.mark.parametrize("tta", TTA)
def test_evaluation_takes_the_mean_logits_of_the_views(tta, tmp_path):
    images = torch.randint(0, 256, (10, 1, 48, 48), dtype=torch.uint8)
    model, splits = Corners(), {"PublicTest": Split(images, torch.arange(10) % 7)}
    run = Run(tmp_path, CPU, autocast(CPU, "off"))
    found = evaluate_splits(model, splits, 4, run, tta)["PublicTest"]
    torch.testing.assert_close(found.logits, oracle(model, images, tta))
    plain = evaluate_splits(model, splits, 4, run)["PublicTest"]
    assert plain.logits.allclose(found.logits) == (tta == "none")
    low = tta_predict(lambda x: x.mean(dim=(1, 2, 3))[:, None].bfloat16(), tta)
    if tta != "none":
        assert low(torch.rand(2, 1, 48, 48)).dtype == torch.float32, "the mean is in full precision"


def test_other_data_sets_are_scored_over_the_views(tmp_path: Path, monkeypatch):
    images = torch.randint(0, 256, (9, 1, 48, 48), dtype=torch.uint8)
    names = [str(k) for k in range(9)]
    faces = Faces(images, torch.arange(9) % 3, names, names, names)
    (tmp_path / "x.pt").write_bytes(b"of which the summary has the digest")
    trained = Trained(tmp_path / "x.pt", Corners(), 0, 0, None)
    args = parse("--checkpoint x --mode evaluate --tta tencrop --batch_size 4", test_JAFFE)
    run = Run(tmp_path, CPU, autocast(CPU, "off"))
    monkeypatch.setattr(crossval, "load_start", lambda _: trained)
    summary = crossval.evaluate_faces(args, run, faces, "X", CLASSES)
    loss = F.cross_entropy(oracle(trained.model, images, "tencrop").double(), faces.labels)
    assert summary["figures"]["X"]["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_training_chooses_in_a_single_view_and_reports_over_the_views(tmp_path: Path, capsys):
    data = write_small_table(tmp_path, each=4)
    words = command(
        TRAIN, data, tmp_path, "--epochs", "1", "--save", "t", "--tta", "flip", "--amp", "off"
    )[2:]
    assert cli.run_script(train_FER2013.main, train_FER2013.build_parser(), words) == 0
    assert "--tta flip" in capsys.readouterr().err
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert summary["details"]["tta"] == "flip"
    model = load_trained(tmp_path / "t" / "best_val_weights.pt").model.eval()
    split = load_set(data).splits["PrivateTest"]
    logits = oracle(model, split.images, "flip").double()
    loss = pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-6)
    assert summary["figures"]["PrivateTest"]["loss"] == loss
    assert summary["details"]["last_epoch"]["PrivateTest_loss"] != loss
    words = ["--model_names", str(tmp_path / "t"), "--data", str(data), "--model_path",
             str(tmp_path), "--save", "e", "--tta", "flip", "--amp", "off"]  # fmt: skip
    assert cli.run_script(ensemble.main, ensemble.build_parser(), words) == 0
    again = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert again["figures"]["PrivateTest"]["loss"] == loss
