"""tools.reproduce: its presets, what it skips, resumes and refuses, and its table."""

from __future__ import annotations

import csv
import importlib
import json
import sys

import pytest
from fer2013_files import write_small_table
from runs import TRAIN, difference, finish, here, kill

from tools import reproduce
from tools.reproduce import PRESETS, read_preset

TINY = f"""
    1 train     {" ".join([TRAIN[0], *TRAIN[3:-2]])}
    1 ensemble  ensemble.py --model_names {{out}}/train
    1 ck48      test_CK48.py --checkpoint {{out}}/train
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The flags of a preset of two stages."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(reproduce, "timed_step", lambda _: 1.0)
    data = write_small_table(tmp_path, each=12)
    return ["--preset", "tiny", "--data", str(data), "--out", str(tmp_path / "out")]


@pytest.mark.parametrize("preset", PRESETS)
def test_commands_of_a_preset_parse(preset, tmp_path):
    scripts = set()
    for stage in read_preset(preset, "synthetic", tmp_path, "cpu"):
        module = importlib.import_module(stage.words[0].removesuffix(".py"))
        args = module.build_parser().parse_args(stage.words[1:])
        assert (args.data, args.save, args.device) == ("synthetic", stage.name, "cpu")
        scripts.add(stage.words[0])
    assert len(scripts) == 6


def test_killed_stages_go_on_to_the_same_end(tiny, tmp_path, capsys):
    data, out = tiny[3], tmp_path / "out"
    train, ensemble, _ = read_preset("tiny", data, out, "auto")
    whole = tmp_path / "whole"
    finish([sys.executable, *train.words, "--model_path", str(whole)], tmp_path / "whole.log")
    kill([sys.executable, *train.words], "epoch 2 step 1/", tmp_path / "killed.log")
    ensemble.folder.mkdir()
    (ensemble.folder / "log.txt").write_text(f"2026 {ensemble.command}, commit x\n")
    (ensemble.folder / "PublicTest_report.txt").write_text("of a killed run")
    assert here(reproduce, tiny) == 0
    assert difference(out / "train", whole / "train") is None
    printed = capsys.readouterr().out
    assert f"$ python train_FER2013.py --resume {out}/train" in printed
    assert "ck48 is left out: " in printed
    with (out / "figures.csv").open(encoding="utf-8") as file:
        rows = {row["result"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"one network", "ensemble"}
    figure = json.loads((out / "train/summary.json").read_bytes())["figures"]["PrivateTest"]
    assert rows["one network"]["ours %"] == f"{figure['accuracy']:.2f}"
    page = (out / "report.html").read_text("utf-8")
    assert rows["one network"]["command"] in page
    assert 'href="train/log.txt"' in page

    times = [path.stat().st_mtime_ns for path in sorted(out.glob("*/*"))]
    assert here(reproduce, tiny) == 0
    assert "\nstage" not in capsys.readouterr().out
    assert times == [path.stat().st_mtime_ns for path in sorted(out.glob("*/*"))]


def test_folder_of_another_command_is_refused(tiny, tmp_path, capsys):
    folder = tmp_path / "out/train"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"command": "python train_FER2013.py --epochs 9"}')
    assert here(reproduce, tiny) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--epochs 9, expected python train_FER2013.py" in error
    assert "choose another --out" in error


def test_folders_of_others_are_kept(tiny, tmp_path, capsys):
    folder = tmp_path / "out/train"
    folder.mkdir(parents=True)
    (folder / "letter.txt").write_text("mine")
    assert here(reproduce, tiny) == 2
    assert (folder / "letter.txt").read_text() == "mine"
    assert "train: train_FER2013.py ended with status 2" in capsys.readouterr().err


def test_dry_run_prints_the_commands_alone(tiny, tmp_path, capsys):
    assert here(reproduce, [*tiny, "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["train_FER2013.py", "ensemble.py"]
    assert not (tmp_path / "out").exists()
