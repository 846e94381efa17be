"""The patches of docs/extending.md, applied to a copy of the code and run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, run

PATCHES = dict(
    zip(
        ("primitive", "loss", "optimizer"),
        re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S),
        strict=True,
    )
)
SHORT = (
    "--data synthetic --device cpu --limit_batches 1 --batch_size 8 --init_channels 4 --layers 3"
)
TRAIN = f"train_FER2013.py {SHORT} --epochs 2 --learning_rate 0.001 --save run"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code in a folder outside any repository."""
    folder = tmp_path / "code"
    skip = shutil.ignore_patterns(".*", "__pycache__", "tests", "saved_models", "images", "demo")
    shutil.copytree(ROOT, folder, ignore=skip)
    return folder


def apply(folder: Path, name: str) -> None:
    words = ["git", "apply", "-"]
    done = subprocess.run(
        words, cwd=folder, input=PATCHES[name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_primitive_is_searched_and_drawn(copy):
    apply(copy, "primitive")
    words = f"search.py {SHORT} --epochs 1 --warmup_dec_epoch 0 --decision_freq 1 --save run"
    done = run([sys.executable, *words.split()], cwd=copy)
    assert done.returncode == 0, done.stderr
    header = (copy / "saved_models" / "run" / "alphas.csv").read_text().splitlines()[0]
    assert header.endswith("conv_3x3,sep_conv_1x1")
    cost = "from operations import PRIMITIVE_TABLE as t; print(t['sep_conv_1x1'].cost)"
    assert run([sys.executable, "-c", cost], cwd=copy).stdout == "312\n"


def test_loss_and_optimizer_train_and_resume(copy):
    apply(copy, "loss")
    apply(copy, "optimizer")
    done = run([sys.executable, *TRAIN.split()], cwd=copy)
    assert done.returncode == 0, done.stderr
    again = run([sys.executable, "train_FER2013.py", "--resume", "run"], cwd=copy)
    assert again.returncode == 0, again.stderr
