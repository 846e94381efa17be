"""Runs that are killed, interrupted or out of time end as if nothing had happened.

Two runs are real command lines; the others are forked, which saves the imports.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
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
    finish,
    here,
    kill,
    read,
    run,
    same,
    stop_when,
    weights,
)  # fmt: skip

import relabel_training
import search
import test_CK48
import train_FER2013
from benchmarks.runs import Child
from runtime.files import TEMPORARY
from runtime.logs import open_log

SCRIPTS = {"train": TRAIN, "search": SEARCH}

each_script = pytest.mark.parametrize("name", SCRIPTS)


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


@each_script
def test_resume_is_bit_exact(name, data, whole, tmp_path):
    folder, words = tmp_path / name, command(SCRIPTS[name], data, tmp_path)
    kill([*words, "--save", name], "epoch 2 step 2/", tmp_path / "first.log")
    assert read(folder)["state"]["epoch"] == 1
    kill([*words, "--resume", name], "epoch 3 step 1/", tmp_path / "second.log")
    assert read(folder)["state"]["epoch"] == 2
    # What a process leaves that is killed while it writes.
    (folder / f"checkpoint.pt0a1b2c3d{TEMPORARY}").write_bytes(b"half a checkpoint")
    done = run([*words, "--resume", name])
    assert done.returncode == 0, done.stderr
    assert difference(folder, whole / name) is None
    assert not list(folder.glob("*.tmp"))


def test_ctrl_c_saves_and_says_so(data, tmp_path):
    words, log = command(TRAIN, data, tmp_path, "--save", "t"), tmp_path / "t" / "log.txt"
    stopped = stop_when(words, "epoch 1 step 2/", signal.SIGINT, log)
    assert stopped.returncode == 130
    printed = stopped.stderr.read()
    again = f"go on with: python train_FER2013.py --resume {tmp_path}/t"
    assert printed.rstrip().endswith(f"train_FER2013.py: stopped (SIGINT); saved; {again}")
    assert "Traceback" not in printed
    assert read(tmp_path / "t")["state"]["step"] >= 2


@pytest.mark.parametrize("name, number, status, line, least", [
    ("train", signal.SIGINT, 130, "epoch 2 step 1/", (1, 1)),
    ("search", signal.SIGTERM, 143, "epoch 2 step 1/", (1, 1)),
    ("train", signal.SIGUSR1, 128 + signal.SIGUSR1, "epoch 2 step 1/", (1, 1)),
    ("train", signal.SIGKILL, -signal.SIGKILL, "epoch 1 step 2/", (0, 0)),
])  # fmt: skip
def test_resume_after_a_signal(name, number, status, line, least, data, whole, tmp_path):
    folder = tmp_path / name
    words, log = command(SCRIPTS[name], data, tmp_path), tmp_path / "cut.log"
    found, printed = cut([*words, "--save", name], line, number, log)
    assert found == status
    assert "Traceback" not in printed
    state = read(folder)["state"]
    assert (state["epoch"], state["step"]) >= least
    # All flags are the run's own, its data too.
    finish([*words[:2], "--resume", str(folder)], tmp_path / "resumed.log")
    assert difference(folder, whole / name) is None


@each_script
def test_resume_after_the_time_limit(name, data, whole, tmp_path):
    words = command(SCRIPTS[name], data, tmp_path)
    short = [*words, "--save", name, "--time_limit", "0.0001"]
    assert "stopped (time limit)" in finish(short, tmp_path / "short.log")
    assert not (tmp_path / name / "summary.json").exists()
    finish([*words, "--resume", name], tmp_path / "resumed.log")
    assert difference(tmp_path / name, whole / name) is None


@pytest.mark.parametrize("more", [
    "--unrolled --protocol paper --limit_batches 2", "--init_channels 4 --partial_channels 4"
], ids=["second order, the paper's halves", "partial channels"])  # fmt: skip
def test_resume_of_other_searches(more, data, tmp_path):
    words = command(SEARCH, data, tmp_path, *more.split())
    finish([*words, "--save", "whole"], tmp_path / "whole.log")
    kill([*words, "--save", "search"], "epoch 3 step 1/", tmp_path / "cut.log")
    finish([*words[:2], "--resume", str(tmp_path / "search")], tmp_path / "resumed.log")
    assert difference(tmp_path / "search", tmp_path / "whole") is None


def test_resume_with_every_part_of_the_recipe(data, tmp_path):
    for seed, name in enumerate(("a", "b")):
        weights(tmp_path / f"{name}.pt", seed)
    recipe = (
        "--recipe strong --ema 0.3 --mixup 0.4 --cutmix 1 --mix_off_epochs 1 --affine 0.2 "
        "--erasing 0.5 --cutout --cutout_length 5 --label_smoothing 0.1 --drop_path_prob 0.2 "
        "--teacher a,b --tta flip"
    ).split()
    words = command(TRAIN, data, tmp_path, *recipe)
    finish([*words, "--save", "whole"], tmp_path / "whole.log")
    stopped, _ = cut(
        [*words, "--save", "cut"], "epoch 1 step 2/", signal.SIGTERM, tmp_path / "cut.log"
    )
    assert stopped == 143
    assert read(tmp_path / "cut")["state"]["step"] > 0
    kill([*words, "--resume", "cut"], "epoch 3 step 1/", tmp_path / "killed.log")
    again = [*words[:2], "--resume", str(tmp_path / "cut"), "--model_path", str(tmp_path)]
    finish(again, tmp_path / "resumed.log")
    assert difference(tmp_path / "cut", tmp_path / "whole") is None
    shown, resumed = (
        torch.load(tmp_path / label / "weights.pt", weights_only=True)["state_dict"]
        for label in ("whole", "cut")
    )
    assert same(shown, resumed)
    found = read(tmp_path / "whole")
    averages = {f"module.{name}": value for name, value in shown.items()}
    assert same({"n_averaged": found["average"]["n_averaged"], **averages}, found["average"])
    assert not same(shown, found["state_dict"])


def test_resume_of_a_finished_run_reports_the_same(data, whole, tmp_path):
    names = ("summary.json", "PublicTest_report.txt", "PrivateTest_confusion.csv")
    before = [(whole / "train" / name).read_text() for name in names]
    for name in names:
        (whole / "train" / name).unlink()
    finish(command(TRAIN, data, whole, "--resume", "train"), tmp_path / "resumed.log")
    assert [(whole / "train" / name).read_text() for name in names] == before


@each_script
def test_run_that_goes_on_has_no_summary_until_it_ends(name, data, whole, tmp_path, capsys):
    shutil.copytree(whole / name, tmp_path / name)
    again = command(SCRIPTS[name], data, tmp_path, "--resume", name)[2:]
    script = {"train": train_FER2013, "search": search}[name]
    assert here(script, [*again, "--epochs", "4", "--time_limit", "0.0001"]) == 0
    assert "stopped (time limit); saved" in capsys.readouterr().err
    assert not (tmp_path / name / "summary.json").exists()
    open_log()  # unlocks the folder
    assert here(script, [*again, "--epochs", "4"]) == 0
    assert json.loads((tmp_path / name / "summary.json").read_bytes())["epochs"] == 4


def test_a_run_of_another_script_is_refused(data, whole, capsys):
    before = (whole / "train" / "checkpoint.pt").read_bytes()
    for script in (search, relabel_training, test_CK48):
        assert here(script, f"--data {data} --model_path {whole} --resume train") == 2
        expected = f"a run of train_FER2013.py, expected one of {script.__name__}.py"
        assert expected in capsys.readouterr().err
        assert (whole / "train" / "checkpoint.pt").read_bytes() == before


@each_script
def test_weights_that_are_not_finite_are_refused(name, data, whole, tmp_path, capsys):
    shutil.copytree(whole / name, tmp_path / name)
    path, checkpoint = tmp_path / name / "checkpoint.pt", read(tmp_path / name)
    next(iter(checkpoint["state_dict"].values())).fill_(float("nan"))
    torch.save(checkpoint, path)
    before = path.read_bytes()
    script = {"train": train_FER2013, "search": search}[name]
    words = command(SCRIPTS[name], data, tmp_path, "--resume", name)
    assert here(script, words[2:]) == 2
    assert "not finite" in capsys.readouterr().err
    assert path.read_bytes() == before


def killed_after_replacing(name: str) -> None:
    """Let this process be killed once it has replaced a file `name`."""
    replace = os.replace

    def replaced(source, target) -> None:
        replace(source, target)
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replaced


def test_weights_are_of_the_history_whenever_a_run_is_killed(data, whole, tmp_path):
    words = command(TRAIN, data, tmp_path)
    for name in ("weights.pt", "best_val_weights.pt", "metrics.csv", "checkpoint.pt"):
        child = Child(
            [*words[1:], "--save", name],
            tmp_path / f"{name}.log",
            partial(killed_after_replacing, name),
        )
        assert child.wait() == -signal.SIGKILL, child.printed()
        history = read(tmp_path / name)["state"]["history"]
        for path in (tmp_path / name).glob("*weights.pt"):
            assert torch.load(path, weights_only=True)["metrics"] in history, (name, path)
    # Killed before anything but the checkpoint of an epoch was written.
    finish([*words, "--resume", "weights.pt"], tmp_path / "resumed.log")
    assert difference(tmp_path / "weights.pt", whole / "train") is None


def test_weights_of_another_history_are_not_reported(data, whole, tmp_path, capsys):
    shutil.copytree(whole / "train", tmp_path / "train")
    path = tmp_path / "train" / "best_val_weights.pt"
    content = torch.load(path, weights_only=True)
    content["metrics"]["PublicTest_accuracy"] += 1
    torch.save(content, path)
    checkpoint = read(tmp_path / "train")
    checkpoint["state"]["history"][-1]["PublicTest_accuracy"] = -1.0  # not written again
    torch.save(checkpoint, tmp_path / "train" / "checkpoint.pt")
    words = command(TRAIN, data, tmp_path, "--resume", "train")
    assert here(train_FER2013, words[2:]) == 2
    assert f"{path}: ValueError: of another run" in capsys.readouterr().err


@each_script
def test_other_data_under_the_same_name_is_refused(name, tmp_path, capsys):
    path = write_small_table(tmp_path, each=3)
    words = command(SCRIPTS[name], path, tmp_path)
    finish([*words, "--save", name, "--time_limit", "0.0001"], tmp_path / "short.log")
    rows = path.read_text().splitlines()
    label, pixels, usage = rows[5].split(",")
    other = str(int(pixels.split()[0]) ^ 1)
    changed = ",".join([label, " ".join([other, *pixels.split()[1:]]), usage])
    script = {"train": train_FER2013, "search": search}[name]
    for new in ([*rows[:5], changed, *rows[6:]], rows[:-1], [*rows, rows[-1]],
                [rows[0], *rows[2:], rows[1]]):  # fmt: skip
        path.write_text("\n".join(new))
        assert here(script, [*words[2:], "--resume", name]) == 2
        expected = f"--data {path}: no longer what {tmp_path / name} began with, expected the same"
        assert expected in capsys.readouterr().err
    open_log()  # unlocks the folder
    path.write_text("\n".join(rows))
    finish([*words, "--resume", name, "--data", str(path)], tmp_path / "resumed.log")


def test_another_teacher_under_the_same_name_is_refused(data, tmp_path, capsys):
    teacher = weights(tmp_path / "a.pt")
    words = command(TRAIN, data, tmp_path, "--teacher", str(teacher))
    finish([*words, "--save", "t", "--time_limit", "0.0001"], tmp_path / "short.log")
    weights(teacher, seed=1)
    assert here(train_FER2013, [*words[2:], "--resume", "t"]) == 2
    assert f"--teacher {teacher}: no longer what" in capsys.readouterr().err


@each_script
def test_runs_of_older_versions_go_on(name, data, whole, tmp_path):
    shutil.copytree(whole / name, tmp_path / name)
    checkpoint = read(tmp_path / name)
    del checkpoint["inputs"]
    for part in ("model", "args"):
        checkpoint[part].pop("partial_channels", None)
    torch.save(checkpoint, tmp_path / name / "checkpoint.pt")
    words = command(SCRIPTS[name], data, tmp_path, "--resume", name, "--epochs", "4")
    finish(words, tmp_path / "resumed.log")
    assert read(tmp_path / name)["state"]["epoch"] == 4
