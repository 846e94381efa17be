"""Command lines: what becomes of flags, and which of them a resumed run keeps."""

from __future__ import annotations

import argparse

import pytest
import torch
from runs import here, weights
from test_engine import parse

import ensemble
import relabel_training
import search
import test_CK48
import test_JAFFE
import train_FER2013
from common import cli
from common.arguments import LIMITS
from common.start import resolve_device
from common.weights import load_trained
from genotypes import Auto_FERNet, resolve_genotype
from runtime.errors import UserError
from runtime.stop import Interrupted
from tools import export_weights, predict
from utils import save_checkpoint


def saved_run(tmp_path, flags, module=train_FER2013) -> str:
    """A run folder that holds nothing but the flags it was started with, as words or a dict."""
    (tmp_path / "run").mkdir()
    kind = "folds" if module is test_JAFFE else "training"
    args = vars(parse(flags, module)) if isinstance(flags, str) else flags
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", kind, {"args": args})
    return str(tmp_path / "run")


@pytest.mark.parametrize("module", [
    search, train_FER2013, relabel_training, ensemble, test_CK48, test_JAFFE, predict,
    export_weights,
], ids=lambda module: module.__name__)  # fmt: skip
def test_help_gives_every_flag_a_reason_and_its_default(module):
    parser = module.build_parser()
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action.dest
        shown = action.default not in (None, False, [], argparse.SUPPRESS)
        if shown and action.option_strings:
            assert f"(default: {action.default})" in text, action.dest


def test_default_architecture_is_the_papers():
    assert all(resolve_genotype(parse(words).arch) == Auto_FERNet for words in ("", "--arch"))
    assert predict.build_parser().parse_args(["x.png"]).checkpoint == ["auto_fernet"]
    assert ensemble.build_parser().parse_args([]).model_names == ["auto_fernet"]


def test_a_resumed_run_keeps_its_flags(tmp_path):
    run = saved_run(tmp_path, "--data there --epochs 7 --seed 3 --no-auxiliary --report_freq 9")
    args = parse(f"--resume {run} --time_limit 5")
    assert (args.data, args.epochs, args.seed, args.auxiliary) == ("there", 7, 3, False)
    assert (args.report_freq, args.time_limit, args.resume) == (9, 5.0, run)
    args = parse(f"--resume {run} --data elsewhere --epochs 7")
    assert (args.data, args.epochs) == ("elsewhere", 7)
    assert parse(f"--resume {run} --epochs 8").longer_from == 7
    for flag in ("--epochs 6", "--auxiliary", "--save other"):
        with pytest.raises(UserError, match=flag.split()[0]):
            parse(f"--resume {run} {flag}")


@pytest.mark.parametrize("first, again, expected", [
    ("--gpu 1", "", ("auto", 1)),
    ("--gpu 1", "--device cpu", ("cpu", None)),
    ("--device cpu", "--gpu 0", ("auto", 0)),
    ("--device cpu", "", ("cpu", None)),
])  # fmt: skip
def test_a_device_at_resume_replaces_both_flags(first, again, expected, tmp_path):
    args = parse(f"--resume {saved_run(tmp_path, first)} {again}")
    assert (args.device, args.gpu) == expected


@pytest.mark.parametrize("crop, expected", [("0,0,9,9", (0, 0, 9, 9)), ("none", None)])
def test_crop_survives_a_resume(crop, expected, tmp_path):
    run = saved_run(tmp_path, f"--checkpoint x --crop {crop}", test_JAFFE)
    assert parse(f"--resume {run}", test_JAFFE).crop == expected
    assert parse(f"--resume {run} --crop {crop}", test_JAFFE).crop == expected
    with pytest.raises(UserError, match="--crop"):
        parse(f"--resume {run} --crop 1,1,5,5", test_JAFFE)


def test_runs_of_older_versions_are_refused(tmp_path):
    with pytest.raises(UserError, match="a run of an older version"):
        parse(f"--resume {saved_run(tmp_path, {'epochs': 3})}")


@pytest.mark.parametrize("words, expected", [
    ("--mixup 0.2 --mix_off_epochs 3", "--mix_off_epochs 3: expected fewer than --epochs 3"),
    ("--nesterov --momentum 0", "--nesterov: needs momentum, found --momentum 0"),
])  # fmt: skip
def test_flags_that_exclude_each_other_are_refused(words, expected):
    with pytest.raises(UserError, match=expected):
        parse(f"--epochs 3 {words}")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_the_command_first(name, tmp_path):
    note = tmp_path / "note"
    code = (
        "import os, pathlib, signal, sys, time\n"
        f"note = pathlib.Path({str(note)!r})\n"
        "def end(*_):\n    time.sleep(0.5); note.write_text('saved'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"os.kill(os.getppid(), signal.{name})\n"
        "time.sleep(600)\n"
        "note.write_text('never told')\n"
    )
    with pytest.raises(Interrupted) as raised:
        cli.run_command(["-c", code])
    assert raised.value.reason == name
    assert note.read_text() == "saved"
    assert cli.run_command(["-c", "import sys; sys.exit(3)"]) == 3


def test_each_process_of_torchrun_has_a_gpu(monkeypatch):
    monkeypatch.setattr("common.start.is_distributed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")

    def resolved(device: str, gpu: int | None = None) -> torch.device:
        return resolve_device(argparse.Namespace(device=device, gpu=gpu))

    assert resolved("auto") == resolved("cuda") == torch.device("cuda:3")
    assert chosen == [torch.device("cuda:3")] * 2
    assert resolved("cpu") == torch.device("cpu")
    for device, gpu in (("cuda:1", None), ("auto", 1)):
        with pytest.raises(UserError, match="one device for 4 processes"):
            resolved(device, gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert resolved("auto", 1) == torch.device("cuda:1")


HUGE = ["--epochs 2147483648", "--layers 51", "--init_channels 1025", "--learning_rate 1e39",
        "--learning_rate 1e-46", "--grad_clip 1e300", f"--batch_size {2**63}",
        "--sizes 2147483644 --size_epochs 1"]  # fmt: skip


@pytest.mark.parametrize("words", HUGE, ids=lambda words: words[:20])
def test_numbers_that_nothing_can_hold_are_refused_at_once(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{words.split()[0]}: " in last
    assert "expected" in last


def test_largest_flags_make_what_can_be_read(tmp_path):
    args = parse(f"--layers 50 --init_channels 1024 --epochs {2**31 - 1} --save {'x' * 255}")
    assert (args.layers, args.init_channels) == (LIMITS["layers"], LIMITS["C"])
    for name in ("epoch", "epochs"):
        path = weights(tmp_path / "w.pt")
        content = torch.load(path, weights_only=True)
        content |= {name: 2 * args.epochs}  # fine-tuned as long as it was trained
        torch.save(content, path)
        assert getattr(load_trained(path), name) == 2 * args.epochs


@pytest.mark.parametrize("words", [
    "--data {}", "--teacher {}", "--resume {}", "--save {}", "--arch {}"
])  # fmt: skip
def test_name_that_is_too_long_is_one_line(words, tmp_path, capsys):
    name = "x" * 300
    argv = f"--data synthetic --model_path {tmp_path} {words.format(name)}".split()
    assert here(train_FER2013, argv) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert name[:70] in last
