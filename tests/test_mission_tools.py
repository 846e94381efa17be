"""tools.relabel_sweep and tools.demo."""

from __future__ import annotations

import csv
import importlib
import json
import shlex
from pathlib import Path

import pytest
from fer2013_files import write_small_table
from PIL import Image
from runs import command, run, weights

from common import cli
from tools import demo, relabel_sweep


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """An untrained checkpoint beside a small FER2013."""
    weights(tmp_path / "start.pt")
    write_small_table(tmp_path, each=2)
    return tmp_path


def sweep(start: Path, *flags: str, out: str = "sweep"):
    words = "-m tools.relabel_sweep --relabel_thresholds 0,0.9 --fes_thresholds 0,2".split()
    more = ["--data", str(start), "--checkpoint", str(start / "start.pt"), "--epochs", "2", *flags]
    return run(command(words, "", start, "--out", str(start / out), "--", *more))


def test_sweep_runs_each_cell_once(start):
    done = sweep(start)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((start / "sweep" / "sweep.csv").open()))
    cells = [(float(row["relabel_threshold"]), float(row["fes_threshold"])) for row in rows]
    assert cells == [(0.0, 0.0), (0.0, 2.0), (0.9, 0.0), (0.9, 2.0)]
    changed = [int(row["changed_in_last_epoch"]) for row in rows]
    # Similarities are at most 1, and no gap is below 0.
    assert changed[:2] == [0, 0]
    assert changed[2] > 0
    assert changed[3] == 0
    with Image.open(start / "sweep" / "sweep.png") as picture:
        assert picture.width > 300
    before = (start / "sweep" / "sweep.csv").read_bytes()
    (start / "start.pt").unlink()
    again = sweep(start)
    assert again.returncode == 0, again.stderr
    assert (start / "sweep" / "sweep.csv").read_bytes() == before
    other = sweep(start, "--seed", "1")
    assert other.returncode == 2
    assert "holds a sweep with" in other.stderr


def test_cells_as_jobs(start, capsys, monkeypatch):
    ran = []

    def pretend(folder: Path, cell: dict, _flags: list) -> None:
        folder.mkdir()
        ran.append(cell)
        figures = {name: {"accuracy": 50.0} for name in ("PublicTest", "PrivateTest")}
        details = {"chosen_epoch": 1, "last_epoch": {"changed": 2}}
        summary = {"figures": figures, "details": details}
        (folder / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(relabel_sweep, "_run", pretend)
    out = start / "sweep"
    words = ["--relabel_thresholds", "0.1,0.2", "--fes_thresholds", "0.03", "--out", str(out)]
    more = ["--", "--checkpoint", str(start / "start.pt")]

    def job(cell: int) -> int:
        argv = [*words, "--cell", str(cell), *more]
        return cli.run_script(relabel_sweep.main, relabel_sweep.build_parser(), argv)

    assert job(2) == 0
    assert "1 of 2 cells are left: relabel_0.1_fes_0.03" in capsys.readouterr().out
    assert not (out / "sweep.csv").exists()
    assert job(1) == 0
    assert [cell["relabel_threshold"] for cell in ran] == [0.2, 0.1]
    assert len((out / "sweep.csv").read_text().strip().split("\n")) == 3
    assert job(3) == 2
    assert "--cell 3: expected 1 to 2" in capsys.readouterr().err
    for text in ("{", '{"figures": {"PublicTest": 3}, "details": {}}'):
        (out / "relabel_0.1_fes_0.03" / "summary.json").write_text(text)
        assert job(1) == 2
        assert "summary.json: " in capsys.readouterr().err


@pytest.mark.parametrize("flags, named", [
    ("", "no --checkpoint"),
    ("--checkpoint x --save y", "--save"),
    ("--checkpoint x --epochs 2 --warmup_epochs 2", "--warmup_epochs 2"),
    ("--checkpoint nowhere", "--checkpoint nowhere"),
])  # fmt: skip
def test_invalid_flags_leave_no_files(flags, named, tmp_path, capsys):
    argv = ["--out", str(tmp_path / "s"), "--", *flags.split()]
    assert cli.run_script(relabel_sweep.main, relabel_sweep.build_parser(), argv) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.glob("s/*"))


def test_draw_sweep(tmp_path):
    rows = [
        {"relabel_threshold": t, "fes_threshold": f, "PublicTest": 60 + t, "PrivateTest": 61 - f}
        for t in (0.1, 0.2)
        for f in (0.02, 0.03, 0.05)
    ]
    figure = relabel_sweep.draw_sweep(rows, tmp_path / "sweep.png")
    assert [len(axes.lines) for axes in figure.axes] == [3, 3]
    assert list(figure.axes[1].lines[2].get_ydata()) == [60.95, 60.95]
    legend = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in legend] == ["0.02", "0.03", "0.05"]


def test_demo_commands_parse():
    scripts = set()
    for text in demo.COMMANDS.values():
        script, *flags = shlex.split(text.format(out="demo"))
        module = importlib.import_module(script.removesuffix(".py"))
        module.build_parser().parse_args([*flags, "--data", "synthetic"])
        scripts.add(script)
    assert len(scripts) == 6


def test_demo_keeps_other_folders(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "log.txt").touch()
    assert cli.run_script(demo.main, demo.build_parser(), ["--out", str(tmp_path)]) == 2
    assert "no run of an earlier demo" in capsys.readouterr().err
    assert (tmp_path / "train" / "log.txt").exists()
