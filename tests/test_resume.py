"""Runs survive: killed, interrupted or out of time, they end as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from runs import SEARCH, TRAIN, command, difference, kill_when, run, same, stop_when, weights

SCRIPTS = {"train": TRAIN, "search": SEARCH}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_table(tmp_path_factory.mktemp("data"), each=12)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both runs, "train" and "search", never interrupted."""
    out = tmp_path_factory.mktemp("whole")
    for name, template in SCRIPTS.items():
        done = run(command(template, data, out, "--save", name))
        assert done.returncode == 0, done.stderr
    return out


def read(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


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
    done = run([*words, "--resume", name])
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, whole / name)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_and_resuming_goes_on_from_there(
    name, number, status, data, whole, tmp_path
):
    folder = tmp_path / name
    words = command(SCRIPTS[name], data, tmp_path)
    stopped = stop_when([*words, "--save", name], "epoch 2 step 1/", number, folder / "log.txt")
    assert stopped.returncode == status
    assert "Traceback" not in stopped.stderr.read()
    state = read(folder)["state"]
    assert (state["epoch"], state["step"]) >= (1, 1)
    # All that makes the run is the run's own: its data too.
    done = run([*words[:2], "--resume", str(folder)])
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, whole / name)


def test_a_second_order_search_on_the_papers_halves_resumes_with_its_momentum(data, tmp_path):
    words = command(SEARCH, data, tmp_path, "--unrolled", "--protocol", "paper", "--epochs", "2")
    done = run([*words, "--save", "whole"])
    assert done.returncode == 0, done.stderr
    kill_when([*words, "--save", "search"], "epoch 2 step 2/", tmp_path / "search" / "log.txt")
    done = run([*words, "--resume", "search"])
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "search", tmp_path / "whole")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_killed_in_its_first_epoch_can_be_resumed(name, data, whole, tmp_path):
    words = command(SCRIPTS[name], data, tmp_path)
    kill_when([*words, "--save", name], "epoch 1 step 2/", tmp_path / name / "log.txt")
    state = read(tmp_path / name)["state"]
    assert (state["epoch"], state["step"]) == (0, 0)
    done = run([*words, "--resume", name])
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / name, whole / name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_time_limit_ends_a_run_with_status_0_and_resuming_finishes_it(
    name, data, whole, tmp_path
):
    words = command(SCRIPTS[name], data, tmp_path)
    done = run([*words, "--save", name, "--time_limit", "0.0001"])
    assert done.returncode == 0, done.stderr
    assert "stopped (time limit)" in done.stderr
    assert not (tmp_path / name / "summary.json").exists()
    done = run([*words, "--resume", name])
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / name, whole / name)


def test_a_finished_run_resumes_to_the_same_report(data, whole):
    names = ("summary.json", "PublicTest_report.txt", "PrivateTest_confusion.csv")
    before = [(whole / "train" / name).read_text() for name in names]
    for name in names:
        (whole / "train" / name).unlink()
    done = run(command(TRAIN, data, whole, "--resume", "train"))
    assert done.returncode == 0, done.stderr
    assert [(whole / "train" / name).read_text() for name in names] == before


def test_a_flag_that_contradicts_the_resumed_run_is_refused(data, whole):
    words = [w for w in command(TRAIN, data, whole) if w != "--arch"]
    done = run([*words, "--resume", "train", "--learning_rate", "0.5"])
    assert done.returncode == 2
    assert "--learning_rate 0.5: contradicts" in done.stderr
    assert "Traceback" not in done.stderr


def test_resuming_another_scripts_run_is_refused(data, whole):
    before = (whole / "train" / "checkpoint.pt").read_bytes()
    for script in ("search.py", "relabel_training.py", "test_CK48.py"):
        words = [script, "--data", "{data}", "--model_path", "{out}", "--resume", "train"]
        done = run(command(words, data, whole))
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert f"a run of train_FER2013.py, expected one of {script}" in done.stderr
    assert (whole / "train" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    name, data, tmp_path
):
    words = command(SCRIPTS[name], data, tmp_path, "--save", name)
    stopped = stop_when(words, "epoch 2 step 1/", signal.SIGINT, tmp_path / name / "log.txt")
    assert stopped.returncode == 130
    path = tmp_path / name / "checkpoint.pt"
    checkpoint = read(tmp_path / name)
    next(iter(checkpoint["state_dict"].values())).fill_(float("nan"))
    torch.save(checkpoint, path)
    before = path.read_bytes()
    done = run(command(SCRIPTS[name], data, tmp_path, "--resume", name))
    assert done.returncode == 2
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before


def test_a_run_with_every_part_of_the_recipe_resumes_exactly(data, tmp_path):
    for seed, name in enumerate(("a", "b")):
        weights(tmp_path / f"{name}.pt", seed)
    recipe = (
        "--recipe strong --ema 0.8 --mixup 0.4 --cutmix 1 --mix_off_epochs 1 --affine 0.2 "
        "--erasing 0.5 --cutout --cutout_length 5 --teacher a,b --tta flip"
    ).split()
    words = [*command(TRAIN, data, tmp_path), *recipe]
    done = run([*words, "--save", "whole"])
    assert done.returncode == 0, done.stderr
    log = tmp_path / "cut" / "log.txt"
    stopped = stop_when([*words, "--save", "cut"], "epoch 1 step 2/", signal.SIGTERM, log)
    assert stopped.returncode == 143
    assert read(tmp_path / "cut")["state"]["step"] > 0
    log.unlink()
    kill_when([*words, "--resume", "cut"], "epoch 3 step 1/", log)
    done = run([*words[:2], "--resume", str(tmp_path / "cut"), "--model_path", str(tmp_path)])
    assert done.returncode == 0, done.stderr
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
