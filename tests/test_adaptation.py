"""Batch norms adapted to the images of one subject."""

from __future__ import annotations

import json

import pytest
import torch
from runs import here, weights

import test_JAFFE
from data.augment import to_float
from genotypes import Auto_FERNet
from model import Network
from recipe.adaptation import adapt_batch_norms


def test_statistics_are_those_of_the_images():
    torch.manual_seed(0)
    network = Network(4, 7, 3, False, Auto_FERNet).eval()
    images = torch.randint(0, 256, (6, 1, 48, 48), dtype=torch.uint8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapted = adapt_batch_norms(network, images)
    x = to_float(images)
    seen = network.stem[0](torch.cat([x, x.flip(-1)]))
    torch.testing.assert_close(adapted.stem[1].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(adapted.stem[1].running_var, seen.var((0, 2, 3)))
    with torch.no_grad():
        features = adapted.stem(torch.cat([x, x.flip(-1)]))
    torch.testing.assert_close(features.mean((0, 2, 3)), torch.zeros(12), rtol=0, atol=1e-5)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in adapted.modules())


@pytest.mark.parametrize("mode", ["evaluate", "finetune"])
def test_adapted_run(mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = weights(tmp_path / "checkpoint.pt")
    words = ["--data", "synthetic", "--checkpoint", str(checkpoint), "--mode", mode, "--epochs",
             "1", "--limit_batches", "2", "--device", "cpu"]  # fmt: skip
    if mode == "finetune":
        words += ["--fold", "2"]
    accuracy = {}
    for name, flags in {"own": [], "adapted": ["--adapt_batch_norm"]}.items():
        assert here(test_JAFFE, [*words, "--save", name, *flags]) == 0
        summary = json.loads((tmp_path / "saved_models" / name / "summary.json").read_text())
        assert summary["details"]["adapt_batch_norm"] == (name == "adapted")
        accuracy[name] = summary["figures"]["JAFFE"]["loss" if mode == "evaluate" else "pooled"]
    assert accuracy["own"] != accuracy["adapted"]
