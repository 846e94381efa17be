"""Trained networks as users name them: checkpoints whose parts are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import weights

from common.weights import find_weights, load_trained
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


def test_the_folder_of_a_search_is_no_checkpoint_and_what_to_do_is_said(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "genotype.txt").write_text("Genotype()")
    with pytest.raises(UserError, match=r"is of a search.*train_FER2013\.py --arch \S+search"):
        find_weights("--checkpoint", "search", str(tmp_path))
    with pytest.raises(UserError) as raised:
        find_weights("--checkpoint", str(tmp_path / "none"), "saved_models")
    assert str(raised.value).count(str(tmp_path / "none.pt")) == 1


@pytest.mark.parametrize("wrong", [
    {"epoch": "x"}, {"epoch": -1}, {"epochs": None}, {"drop_path_prob": 1.5}, {"model": [1]},
])  # fmt: skip
def test_a_field_that_training_never_wrote_is_refused_with_the_name_of_the_file(
    wrong, content, tmp_path
):
    assert refusal({**content, **wrong}, tmp_path / "w.pt").startswith(f"{tmp_path / 'w.pt'}: ")


@pytest.mark.parametrize("wrong", [
    {"C": "4"}, {"layers": 0}, {"num_classes": True}, {"auxiliary": 1}, {"genotype": "Genotype("},
])  # fmt: skip
def test_a_description_of_no_network_is_refused_with_the_name_of_the_file(wrong, content, tmp_path):
    content["model"] |= wrong
    assert refusal(content, tmp_path / "w.pt").startswith(f"{tmp_path / 'w.pt'}: ")
