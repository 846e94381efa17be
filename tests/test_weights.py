"""Trained networks as users name them: checkpoints whose parts are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import weights

from common.weights import find_weights, load_network, load_trained
from model import build_network
from runtime.errors import UserError


def refused(content: dict, path: Path, expected: str = "") -> None:
    torch.save(content, path)
    with pytest.raises(UserError, match=f"^{path}: .*{expected}"):
        load_trained(path)


@pytest.fixture
def content(tmp_path) -> dict:
    return torch.load(weights(tmp_path / "good.pt"), weights_only=True)


def test_missing_weights_are_refused(content, tmp_path):
    refused(dict(enumerate(content["state_dict"].values())), tmp_path / "w.pt")
    del content["state_dict"]["stem.0.weight"]
    refused(content, tmp_path / "w.pt", r"stem\.0\.weight is missing, the network expects")
    del content["state_dict"]
    refused(content, tmp_path / "w.pt", "state_dict")


def test_names_of_no_weights_are_refused(tmp_path):
    with pytest.raises(UserError) as raised:
        find_weights("--checkpoint", str(tmp_path / "none"), "saved_models")
    assert str(raised.value).count(str(tmp_path / "none.pt")) == 1, "each place once"


def test_load_network(tmp_path):
    network = load_network("w", str(weights(tmp_path / "w.pt").parent))
    assert network(torch.rand(2, 1, 48, 48))[0].shape == (2, 7)
    paper = load_network()
    assert paper.num_parameters == 2_164_831
    assert (paper.description["C"], paper.description["layers"]) == (36, 12)
    assert not paper.training


def test_loaded_weights_have_the_strides_of_a_new_network(tmp_path):
    loaded = load_network(str(weights(tmp_path / "w.pt")))
    new = build_network(loaded.description).state_dict()
    assert {name: value.stride() for name, value in loaded.state_dict().items()} == {
        name: value.stride() for name, value in new.items()
    }
