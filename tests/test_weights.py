"""Trained networks as users name them: checkpoints whose parts are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import weights

from tools.weights import load_trained
from utils import UserError


def refusal(content: dict, path: Path) -> str:
    torch.save(content, path)
    with pytest.raises(UserError) as raised:
        load_trained(path, layers=None, init_channels=None, arch=None)
    return str(raised.value)


@pytest.fixture
def content(tmp_path) -> dict:
    return torch.load(weights(tmp_path / "good.pt"), weights_only=True)


def test_weights_without_a_state_dict_are_refused(content, tmp_path):
    del content["state_dict"]
    assert f"{tmp_path / 'w.pt'}: holds no state_dict" in refusal(content, tmp_path / "w.pt")


def test_tensors_without_names_are_no_network(content, tmp_path):
    numbered = dict(enumerate(content["state_dict"].values()))
    text = refusal(numbered, tmp_path / "w.pt")
    assert f"{tmp_path / 'w.pt'}: stem.0.weight is nothing, the network expects" in text
