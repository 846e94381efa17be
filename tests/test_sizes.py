"""Training at rising sizes: what the network sees when, and that a change of size resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fer2013_files import write_small_table
from PIL import Image
from runs import TRAIN, command, difference, ended, finish, kill
from test_recipe import Small, fit_small, parse
from torch.nn import functional as F

from common import recipe
from data.augment import resize
from engine import TrainState
from utils import UserError


def test_resize_is_pillows_antialiased_bilinear():
    images = torch.rand(2, 1, 44, 44, generator=torch.Generator().manual_seed(0))
    for size in (32, 36, 48):
        found = resize(images, size)
        for image, plain in zip(found, images, strict=True):
            small = Image.fromarray(plain[0].numpy()).resize((size, size), Image.BILINEAR)
            torch.testing.assert_close(image[0], torch.from_numpy(np.array(small)), atol=1e-5,
                                       rtol=0)  # fmt: skip
    assert resize(images, 44) is images
    assert resize(images, None) is images


def test_each_epoch_has_its_size_and_the_teacher_sees_full_size():
    seen, taught = [], []

    class Watched(Small):
        def forward(self, x):
            if self.training:
                seen.append(x.shape[-1])
            return super().forward(x)

    def criterion_for(images):
        taught.append(images.shape[-1])
        return F.cross_entropy

    flags = parse("--epochs 5 --sizes 32,40,44 --size_epochs 2,1,2")
    size_at = recipe.fit_arguments(flags)["size_at"]
    fit_small(Watched(), TrainState(), size_at=size_at, criterion_for=criterion_for)
    assert seen == [32] * 6 + [40] * 3 + [44] * 6
    assert set(taught) == {44}
    assert recipe.fit_arguments(parse(""))["size_at"](0) is None


def test_a_run_resumes_across_a_change_of_size(tmp_path: Path):
    data = write_small_table(tmp_path, each=12)
    sizes = "--sizes 32,40 --size_epochs 1,2".split()
    words = [*command(TRAIN, data, tmp_path), *sizes]
    finish([*words, "--save", "whole"], tmp_path / "whole.log")
    kill([*words, "--save", "cut"], "epoch 2 step 1/", tmp_path / "cut.log")
    finish([*words, "--resume", "cut"], tmp_path / "resumed.log")
    assert difference(tmp_path / "cut", tmp_path / "whole") is None
    status, printed = ended([*words, "--resume", "cut", "--sizes", "36,40"], tmp_path / "other.log")
    assert (status, "--sizes" in printed) == (2, True)


@pytest.mark.parametrize("words, expected", [
    ("--sizes 32,44", "--size_epochs none: expected a number for each of the 2"),
    ("--size_epochs 5", "--size_epochs 5: expected a number for each of the 0"),
    ("--sizes 32,44 --size_epochs 2,2", "--size_epochs 2,2: .* 5 in all"),
    ("--sizes 24,44 --size_epochs 2,3", "the auxiliary head needs 32 pixels"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_refused(words, expected):
    with pytest.raises(UserError, match=expected):
        parse(f"--epochs 5 {words}")
    parse("--epochs 5 --sizes 24,44 --size_epochs 2,3 --no-auxiliary")
    with pytest.raises(SystemExit):
        parse("--epochs 5 --sizes 30,44 --size_epochs 2,3")
