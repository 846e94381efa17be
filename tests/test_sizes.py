"""Training at rising sizes: what the network sees when, and that a change of size resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fer2013_files import write_small_table
from PIL import Image
from runs import TRAIN, command, difference, finish, kill
from test_engine import Small, fit_small, parse

from data.augment import resize
from recipe.schedules import size_at
from runtime.errors import UserError


@pytest.mark.parametrize("size", [32, 36, 48])
def test_resize_is_pillows_antialiased_bilinear(size):
    images = torch.rand(2, 1, 44, 44, generator=torch.Generator().manual_seed(0))
    for found, plain in zip(resize(images, size), images, strict=True):
        expected = np.array(Image.fromarray(plain[0].numpy()).resize((size, size), Image.BILINEAR))
        assert np.abs(found[0].numpy() - expected).max() < 1e-5
    assert resize(images, 44) is images
    assert resize(images, None) is images


def test_sizes_of_epochs_and_full_size_for_the_teacher():
    seen, taught = [], []

    class Watched(Small):
        def forward(self, x):
            if self.training:
                seen.append(x.shape[-1])
            return super().forward(x)

    def teacher(images: torch.Tensor) -> torch.Tensor:
        taught.append(images.shape[-1])
        return torch.zeros(len(images), 7)

    sizes = "--epochs 5 --sizes 32,40,44 --size_epochs 2,1,2"
    fit_small(sizes, Watched(), teacher=teacher)
    assert seen == [32] * 6 + [40] * 3 + [44] * 6
    assert set(taught) == {44}
    assert [size_at(epoch, parse(sizes)) for epoch in range(5)] == [32, 32, 40, 44, 44]
    assert size_at(0, parse("")) is None


def test_resume_across_a_change_of_size(tmp_path: Path):
    data = write_small_table(tmp_path, each=12)
    words = [*command(TRAIN, data, tmp_path), *"--sizes 32,40 --size_epochs 1,2".split()]
    finish([*words, "--save", "whole"], tmp_path / "whole.log")
    kill([*words, "--save", "cut"], "epoch 2 step 1/", tmp_path / "cut.log")
    finish([*words, "--resume", "cut"], tmp_path / "resumed.log")
    assert difference(tmp_path / "cut", tmp_path / "whole") is None
    with pytest.raises(UserError, match="--sizes"):
        parse(f"--resume {tmp_path / 'cut'} --sizes 36,40")


@pytest.mark.parametrize("words, expected", [
    ("--sizes 32,44", "--size_epochs none: expected a number for each of the 2"),
    ("--sizes 32,44 --size_epochs 2,2", "--size_epochs 2,2: .* 5 in all"),
    ("--sizes 24,44 --size_epochs 2,3", "the auxiliary head needs 32 pixels"),
])  # fmt: skip
def test_impossible_sizes_are_refused(words, expected):
    with pytest.raises(UserError, match=expected):
        fit_small(f"--epochs 5 {words}")
    with pytest.raises(SystemExit):
        parse("--epochs 5 --sizes 30,44 --size_epochs 2,3")  # 30 is no multiple of 4
