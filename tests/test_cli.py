"""Command lines: what becomes of flags, and which of them a resumed run keeps."""

from __future__ import annotations

import signal
import time

import pytest
import torch

import test_JAFFE
import train_FER2013
from common import arguments, cli, ranks
from utils import Interrupted, UserError, save_checkpoint


def parse(words: str, module=train_FER2013):
    return cli.parse(module.build_parser(), words.split())


def saved_run(tmp_path, words: str, module=train_FER2013) -> str:
    """A run folder that holds nothing but the flags it was started with."""
    (tmp_path / "run").mkdir()
    kind = "folds" if module is test_JAFFE else "training"
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", kind, {"args": vars(parse(words, module))})
    return str(tmp_path / "run")


def test_the_flags_reach_sgd_and_the_loop():
    args = parse("--nesterov --momentum 0.8 --learning_rate 0.1 --weight_decay 0.01 --compile "
                 "--warmup_epochs 2 --epochs 7 --grad_clip 3 --seed 5 --cutout")  # fmt: skip
    assert arguments.sgd_arguments(args) == {
        "lr": 0.1, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True,
    }  # fmt: skip
    found = arguments.fit_arguments(args)
    assert found["compile_forward"] is True
    assert (found["warmup_epochs"], found["epochs"], found["grad_clip"]) == (2, 7, 3.0)
    assert arguments.augmentation(args, jitter=0.5).cutout == 16
    assert arguments.augmentation(args, jitter=0.5).jitter == 0.5
    assert arguments.augmentation(parse("")).cutout == 0


def test_a_resumed_run_keeps_its_flags(tmp_path):
    run = saved_run(tmp_path, "--data there --epochs 7 --seed 3 --no-auxiliary --report_freq 9")
    args = parse(f"--resume {run} --time_limit 5")
    assert (args.data, args.epochs, args.seed, args.auxiliary) == ("there", 7, 3, False)
    assert (args.report_freq, args.time_limit, args.resume) == (9, 5.0, run)
    args = parse(f"--resume {run} --data elsewhere --epochs 7")
    assert (args.data, args.epochs) == ("elsewhere", 7)
    for flag in ("--epochs 8", "--auxiliary", "--save other"):
        with pytest.raises(UserError, match=flag.split()[0]):
            parse(f"--resume {run} {flag}")


@pytest.mark.parametrize("first, again, expected", [
    ("--gpu 1", "", ("auto", 1)),
    ("--gpu 1", "--device cpu", ("cpu", None)),
    ("--device cpu", "--gpu 0", ("auto", 0)),
    ("--device cpu", "", ("cpu", None)),
])  # fmt: skip
def test_a_device_given_on_resume_replaces_both_flags(first, again, expected, tmp_path):
    args = parse(f"--resume {saved_run(tmp_path, first)} {again}")
    assert (args.device, args.gpu) == expected


@pytest.mark.parametrize("crop, expected", [("0,0,9,9", (0, 0, 9, 9)), ("none", None)])
def test_the_box_survives_a_resume(crop, expected, tmp_path):
    run = saved_run(tmp_path, f"--checkpoint x --crop {crop}", test_JAFFE)
    assert parse(f"--resume {run}", test_JAFFE).crop == expected
    assert parse(f"--resume {run} --crop {crop}", test_JAFFE).crop == expected
    with pytest.raises(UserError, match="--crop"):
        parse(f"--resume {run} --crop 1,1,5,5", test_JAFFE)


def test_a_run_of_an_older_version_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", "training", {"args": {"epochs": 3}})
    with pytest.raises(UserError, match="a run of an older version"):
        parse(f"--resume {tmp_path / 'run'}")


def test_a_script_that_is_told_to_stop_ends_before_the_one_that_ran_it(tmp_path):
    note = tmp_path / "note"
    code = (
        "import os, pathlib, signal, sys, time\n"
        f"note = pathlib.Path({str(note)!r})\n"
        "def end(*_):\n    time.sleep(0.5); note.write_text('saved'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    with pytest.raises(Interrupted) as raised:
        cli.run_script(["-c", code])
    assert raised.value.reason == signal.Signals.SIGTERM.name
    assert note.read_text() == "saved"
    assert time.monotonic() - started < 30
    assert cli.run_script(["-c", "import sys; sys.exit(3)"]) == 3


def test_under_torchrun_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(ranks, "several", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for device in ("auto", "cuda"):
        assert cli.resolve_device(device, None) == torch.device("cuda:3")
    assert chosen == [torch.device("cuda:3")] * 2
    assert cli.resolve_device("cpu", None) == torch.device("cpu")
    for device, gpu in (("cuda:1", None), ("auto", 1)):
        with pytest.raises(UserError, match="one device for 4 processes"):
            cli.resolve_device(device, gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert cli.resolve_device("auto", 1) == torch.device("cuda:1")
