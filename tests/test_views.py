"""Test-time augmentation: the mean over written-out views, in every script that evaluates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from runs import TRAIN, command, run
from torch import nn
from torch.nn import functional as F

import ensemble
from common import cli
from common.crossval import evaluate_faces
from common.weights import load_trained
from data.faces import Faces
from data.fer2013 import CLASSES, Split, load_fer2013
from data.views import over_views, views
from engine import autocast, evaluate_splits
from utils import Stop

CPU = torch.device("cpu")
# What a summary asks of the script.
ABOUT = {"script": "", "protocol": None, "seed": 0, "checkpoints": [], "genotype": None,
         "parameters": 0, "epochs": 0}  # fmt: skip


class Corners(nn.Module):
    """Sees where things are: its logits are of the 2x2 means of an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 7)

    def forward(self, x):
        return self.linear(F.adaptive_avg_pool2d(x, 2).flatten(1)), None


def plain_views(image: torch.Tensor, tta: str) -> list[torch.Tensor]:
    """The oracle: the views of one image (1, 48, 48), written out."""
    mirror = image.flip(-1)
    if tta == "none":
        return [image]
    if tta == "flip":
        return [image, mirror]
    corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    return [x[:, r : r + 44, c : c + 44] for x in (image, mirror) for r, c in corners]


def oracle(model: nn.Module, images: torch.Tensor, tta: str) -> torch.Tensor:
    rows = []
    for image in images:
        logits = [model(view[None])[0][0] for view in plain_views(image, tta)]
        rows.append(sum(logits) / len(logits))
    return torch.stack(rows)


@pytest.mark.parametrize("tta, count", [("none", 1), ("flip", 2), ("tencrop", 10)])
def test_the_views_are_those_written_out(tta, count):
    images = torch.rand(3, 1, 48, 48)
    found = views(images, tta)
    assert len(found) == count
    for k, image in enumerate(images):
        expected = plain_views(image, tta)
        for view in found:
            assert any(view[k].equal(each) for each in expected)
        assert all(any(view[k].equal(each) for view in found) for each in expected)


@pytest.mark.parametrize("tta", ["none", "flip", "tencrop"])
def test_an_evaluation_is_the_mean_of_the_logits_of_the_views(tta):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (10, 1, 48, 48), generator=generator, dtype=torch.uint8)
    model = Corners()
    options = {"batch_size": 4, "precision": autocast(CPU, "off"), "stop": Stop()}
    split = Split(images, torch.arange(10) % 7)
    found = evaluate_splits(model, {"PublicTest": split}, tta=tta, **options)["PublicTest"]
    torch.testing.assert_close(found.logits, oracle(model, images / 255.0, tta))
    plain = evaluate_splits(model, {"PublicTest": split}, **options)["PublicTest"]
    assert plain.logits.equal(found.logits) == (tta == "none")


def test_the_mean_is_taken_in_full_precision():
    low = over_views(lambda x: x.mean(dim=(1, 2, 3))[:, None].bfloat16(), "flip")
    assert low(torch.rand(2, 1, 48, 48)).dtype == torch.float32


def test_faces_of_other_sets_are_scored_over_the_views(tmp_path: Path):
    images = torch.randint(0, 256, (9, 1, 48, 48), dtype=torch.uint8)
    names = [str(k) for k in range(9)]
    faces = Faces(images, torch.arange(9) % 3, names, names, names)
    model = Corners()
    summary = evaluate_faces(
        model, faces, device=CPU, precision=autocast(CPU, "off"), batch_size=4, limit_batches=None,
        tta="tencrop", stop=Stop(), run=tmp_path, name="X", classes=CLASSES, about=ABOUT,
    )  # fmt: skip
    loss = F.cross_entropy(oracle(model, images / 255.0, "tencrop").double(), faces.labels)
    assert summary["figures"]["X"]["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_a_training_chooses_in_a_single_view_and_reports_over_the_views(tmp_path: Path):
    data = write_small_table(tmp_path, each=4)
    done = run(command(TRAIN, data, tmp_path, "--epochs", "1", "--save", "t", "--tta", "flip"))
    assert done.returncode == 0, done.stderr
    assert "--tta flip" in done.stderr
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert summary["details"]["tta"] == "flip"
    trained = load_trained(
        tmp_path / "t" / "best_val_weights.pt", layers=None, init_channels=None, arch=None
    )
    split = load_fer2013(data)["PrivateTest"]
    logits = oracle(trained.model.eval(), split.images / 255.0, "flip")
    loss = F.cross_entropy(logits.double(), split.labels).item()
    assert summary["figures"]["PrivateTest"]["loss"] == pytest.approx(loss, rel=1e-6)
    recorded = summary["details"]["last_epoch"]["PrivateTest_loss"]
    assert recorded != pytest.approx(loss, rel=1e-6)
    words = ["--model_names", str(tmp_path / "t"), "--data", str(data), "--model_path",
             str(tmp_path), "--save", "e", "--tta", "flip"]  # fmt: skip
    assert cli.run(ensemble.main, ensemble.build_parser(), words) == 0
    again = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert again["figures"]["PrivateTest"]["loss"] == pytest.approx(loss, rel=1e-6)
