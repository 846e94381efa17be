"""Runs survive: killed, interrupted or out of time, they end as if nothing had happened.

The runs that are killed are real command lines; the others are forked, which saves the imports.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from runs import (
    SEARCH,
    TRAIN,
    command,
    cut,
    difference,
    ended,
    finish,
    kill,
    kill_when,
    read,
    run,
    same,
    stop_when,
    weights,
)

from utils import TEMPORARY

SCRIPTS = {"train": TRAIN, "search": SEARCH}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_table(tmp_path_factory.mktemp("data"), each=12)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both runs, "train" and "search", never interrupted."""
    out = tmp_path_factory.mktemp("whole")
    for name, template in SCRIPTS.items():
        finish(command(template, data, out, "--save", name), out / f"{name}.log")
    return out


def assert_same_end(folder: Path, whole: Path) -> None:
    assert difference(folder, whole) is None


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_killed_again_and_again_ends_with_the_same_weights(name, data, whole, tmp_path):
    folder = tmp_path / name
    words = command(SCRIPTS[name], data, tmp_path)
    log = folder / "log.txt"
    kill_when([*words, "--save", name], "epoch 2 step 2/", log)
    assert read(folder)["state"]["epoch"] == 1
    log.unlink()
    kill_when([*words, "--resume", name], "epoch 3 step 1/", log)
    assert read(folder)["state"]["epoch"] == 2
    # What a process leaves that is killed while it writes.
    (folder / f"checkpoint.pt0a1b2c3d{TEMPORARY}").write_bytes(b"half a checkpoint")
    done = run([*words, "--resume", name])
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, whole / name)
    assert not list(folder.glob("*.tmp"))


def test_ctrl_c_of_a_real_command_saves_and_says_so(data, tmp_path):
    words = [*command(TRAIN, data, tmp_path), "--save", "t"]
    log = tmp_path / "t" / "log.txt"
    stopped = stop_when(words, "epoch 1 step 2/", signal.SIGINT, log)
    assert stopped.returncode == 130
    printed = stopped.stderr.read()
    assert printed.rstrip().endswith("train_FER2013.py: stopped (SIGINT); saved")
    assert "Traceback" not in printed
    assert read(tmp_path / "t")["state"]["step"] >= 2


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_and_resuming_goes_on_from_there(
    name, number, status, data, whole, tmp_path
):
    folder = tmp_path / name
    words = command(SCRIPTS[name], data, tmp_path)
    log = tmp_path / "cut.log"
    found, printed = cut([*words, "--save", name], "epoch 2 step 1/", number, log)
    assert found == status
    assert "Traceback" not in printed
    state = read(folder)["state"]
    assert (state["epoch"], state["step"]) >= (1, 1)
    # All that makes the run is the run's own: its data too.
    finish([*words[:2], "--resume", str(folder)], tmp_path / "resumed.log")
    assert_same_end(folder, whole / name)


def test_a_second_order_search_on_the_papers_halves_resumes_with_its_momentum(data, tmp_path):
    short = "--unrolled --protocol paper --epochs 2 --limit_batches 2".split()
    words = command(SEARCH, data, tmp_path, *short)
    finish([*words, "--save", "whole"], tmp_path / "whole.log")
    kill([*words, "--save", "search"], "epoch 2 step 1/", tmp_path / "cut.log")
    assert read(tmp_path / "search")["state"]["epoch"] == 1
    finish([*words, "--resume", "search"], tmp_path / "resumed.log")
    assert_same_end(tmp_path / "search", tmp_path / "whole")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_killed_in_its_first_epoch_can_be_resumed(name, data, whole, tmp_path):
    words = command(SCRIPTS[name], data, tmp_path)
    kill([*words, "--save", name], "epoch 1 step 2/", tmp_path / "cut.log")
    state = read(tmp_path / name)["state"]
    assert (state["epoch"], state["step"]) == (0, 0)
    finish([*words, "--resume", name], tmp_path / "resumed.log")
    assert_same_end(tmp_path / name, whole / name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_time_limit_ends_a_run_with_status_0_and_resuming_finishes_it(
    name, data, whole, tmp_path
):
    words = command(SCRIPTS[name], data, tmp_path)
    short = [*words, "--save", name, "--time_limit", "0.0001"]
    assert "stopped (time limit)" in finish(short, tmp_path / "short.log")
    assert not (tmp_path / name / "summary.json").exists()
    finish([*words, "--resume", name], tmp_path / "resumed.log")
    assert_same_end(tmp_path / name, whole / name)


def test_a_finished_run_resumes_to_the_same_report(data, whole, tmp_path):
    names = ("summary.json", "PublicTest_report.txt", "PrivateTest_confusion.csv")
    before = [(whole / "train" / name).read_text() for name in names]
    for name in names:
        (whole / "train" / name).unlink()
    finish(command(TRAIN, data, whole, "--resume", "train"), tmp_path / "resumed.log")
    assert [(whole / "train" / name).read_text() for name in names] == before


def test_a_flag_that_contradicts_the_resumed_run_is_refused(data, whole, tmp_path):
    words = [w for w in command(TRAIN, data, whole) if w != "--arch"]
    other = [*words, "--resume", "train", "--learning_rate", "0.5"]
    status, printed = ended(other, tmp_path / "log")
    assert status == 2
    assert "--learning_rate 0.5: contradicts" in printed
    assert "Traceback" not in printed


def test_resuming_another_scripts_run_is_refused(data, whole, tmp_path):
    before = (whole / "train" / "checkpoint.pt").read_bytes()
    for script in ("search.py", "relabel_training.py", "test_CK48.py"):
        words = [script, "--data", "{data}", "--model_path", "{out}", "--resume", "train"]
        status, printed = ended(command(words, data, whole), tmp_path / script)
        assert status == 2
        assert "Traceback" not in printed
        assert f"a run of train_FER2013.py, expected one of {script}" in printed
    assert (whole / "train" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    name, data, tmp_path
):
    words = command(SCRIPTS[name], data, tmp_path, "--save", name)
    stopped, _ = cut(words, "epoch 2 step 1/", signal.SIGINT, tmp_path / "cut.log")
    assert stopped == 130
    path = tmp_path / name / "checkpoint.pt"
    checkpoint = read(tmp_path / name)
    next(iter(checkpoint["state_dict"].values())).fill_(float("nan"))
    torch.save(checkpoint, path)
    before = path.read_bytes()
    words = command(SCRIPTS[name], data, tmp_path, "--resume", name)
    status, printed = ended(words, tmp_path / "resumed.log")
    assert status == 2
    assert "not finite" in printed
    assert "Traceback" not in printed
    assert path.read_bytes() == before


def test_a_run_with_every_part_of_the_recipe_resumes_exactly(data, tmp_path):
    for seed, name in enumerate(("a", "b")):
        weights(tmp_path / f"{name}.pt", seed)
    recipe = (
        "--recipe strong --ema 0.3 --mixup 0.4 --cutmix 1 --mix_off_epochs 1 --affine 0.2 "
        "--erasing 0.5 --cutout --cutout_length 5 --label_smoothing 0.1 --drop_path_prob 0.2 "
        "--teacher a,b --tta flip"
    ).split()
    words = [*command(TRAIN, data, tmp_path), *recipe]
    finish([*words, "--save", "whole"], tmp_path / "whole.log")
    stopped, _ = cut(
        [*words, "--save", "cut"], "epoch 1 step 2/", signal.SIGTERM, tmp_path / "cut.log"
    )
    assert stopped == 143
    assert read(tmp_path / "cut")["state"]["step"] > 0
    kill([*words, "--resume", "cut"], "epoch 3 step 1/", tmp_path / "killed.log")
    again = [*words[:2], "--resume", str(tmp_path / "cut"), "--model_path", str(tmp_path)]
    finish(again, tmp_path / "resumed.log")
    assert_same_end(tmp_path / "cut", tmp_path / "whole")
    found = read(tmp_path / "whole")
    shown = torch.load(tmp_path / "whole" / "weights.pt", weights_only=True)["state_dict"]
    averaged = {
        name.removeprefix("module."): value
        for name, value in found["average"].items()
        if name != "n_averaged"
    }
    assert same(shown, averaged)
    assert not same(shown, found["state_dict"])
    ends = [
        torch.load(tmp_path / label / "weights.pt", weights_only=True)["state_dict"]
        for label in ("whole", "cut")
    ]
    assert same(*ends)
