"""--tensorboard: what is read back from the event files of runs."""

from __future__ import annotations

import csv
import signal
import sys
from pathlib import Path

import pytest
from runs import SEARCH, TRAIN, command, cut, finish, here, run

import test_JAFFE
import train_FER2013
from genotypes import parse_genotype


def events(folder: Path):
    """What TensorBoard shows of a folder."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    everything = dict.fromkeys(("scalars", "histograms", "tensors"), 0)
    return reader.EventAccumulator(str(folder), everything).Reload()


def points(shown, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in shown.Scalars(tag)]


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_resumed_training_has_each_point_once(data, tmp_path):
    pytest.importorskip("tensorboard")
    log, folder = tmp_path / "log", tmp_path / "t"
    words = command(TRAIN, data, tmp_path, "--save", "t", "--tensorboard")
    # It was killed after it wrote the second epoch and before it saved it.
    status, printed = cut(words, "epoch 2/3 ", signal.SIGKILL, log)
    assert status == -signal.SIGKILL, printed
    shown = events(folder / "tensorboard")
    assert [step for step, _ in points(shown, "train_loss")] == [1, 2]
    finish([sys.executable, "train_FER2013.py", "--resume", str(folder)], log)
    shown, rows = events(folder / "tensorboard"), table(folder)
    assert len(list((folder / "tensorboard").iterdir())) == 2
    for tag in ("lr", "train_loss", "train_accuracy", "PublicTest_accuracy", "seconds"):
        expected = [(k + 1, pytest.approx(float(row[tag]))) for k, row in enumerate(rows)]
        assert points(shown, tag) == expected
    assert len(rows) == 3


def test_search_shows_alphas_and_genotype(data, tmp_path):
    pytest.importorskip("tensorboard")
    finish(command(SEARCH, data, tmp_path, "--save", "s", "--tensorboard"), tmp_path / "log")
    shown = events(tmp_path / "s" / "tensorboard")
    for cell in ("normal", "reduce"):
        histograms = shown.Histograms(f"alphas/{cell}")
        assert [each.step for each in histograms] == [1, 2, 3]
        assert histograms[-1].histogram_value.num == 14 * 11
    (text,) = shown.Tensors("genotype/text_summary")[-1].tensor_proto.string_val
    found = (tmp_path / "s" / "genotype.txt").read_text(encoding="utf-8")
    assert parse_genotype(text.decode()) == parse_genotype(found)
    assert points(shown, "open_edges")[-1] == (3, float(table(tmp_path / "s")[-1]["open_edges"]))


def test_each_fold_has_its_folder(place, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(place)
    words = "--data data --checkpoint checkpoint --mode finetune --protocol paper --folds 2"
    more = "--epochs 2 --limit_batches 1 --save folds --device cpu --tensorboard"
    assert here(test_JAFFE, f"{words} {more}") == 0
    folder = place / "saved_models" / "folds" / "tensorboard"
    assert sorted(path.name for path in folder.iterdir()) == ["fold_1", "fold_2"]
    for fold in folder.iterdir():
        assert [step for step, _ in points(events(fold), "test_accuracy")] == [1, 2]


def test_missing_package_is_one_line_and_leaves_no_run(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    words = command(TRAIN, data, tmp_path, "--save", "t", "--tensorboard")[2:]
    assert here(train_FER2013, words) == 2
    line = capsys.readouterr().err.strip().split("\n")[-1]
    assert line.endswith(
        "error: --tensorboard: needs the package tensorboard; pip install -r "
        "requirements-tensorboard.txt"
    )
    assert not (tmp_path / "t").exists()


def test_nothing_is_imported_without_the_flag(data, tmp_path):
    words = command(TRAIN, data, tmp_path, "--save", "t", "--epochs", "1")
    code = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path('train_FER2013.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not any(name.split('.')[0] == 'tensorboard' for name in sys.modules)"
    )
    done = run([sys.executable, "-c", code, *words[1:]])
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "t" / "tensorboard").exists()
