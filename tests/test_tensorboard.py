"""--tensorboard: what is read back from the event files of runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pandas as pd
import pytest
from runs import SEARCH, TRAIN, command, cut, finish, here

import test_JAFFE
import train_FER2013
from genotypes import parse_genotype


def events(folder: Path):
    """All that TensorBoard shows of a folder."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    everything = dict.fromkeys(("scalars", "histograms", "tensors"), 0)
    return reader.EventAccumulator(str(folder), everything).Reload()


def points(shown, tag: str) -> dict[str, list]:
    shown = shown.Scalars(tag)
    return {"epoch": [each.step for each in shown], tag: [each.value for each in shown]}


def test_resumed_training_has_each_point_once(data, tmp_path):
    pytest.importorskip("tensorboard")
    log, folder = tmp_path / "log", tmp_path / "t"
    words = command(TRAIN, data, tmp_path, "--save", "t", "--tensorboard")
    # It is killed after it wrote the points of the second epoch and before it saved the epoch.
    status, printed = cut(words, "epoch 2/3 ", signal.SIGKILL, log)
    assert status == -signal.SIGKILL, printed
    assert points(events(folder / "tensorboard"), "lr")["epoch"] == [1, 2]
    finish([sys.executable, "train_FER2013.py", "--resume", str(folder)], log)
    assert len(list((folder / "tensorboard").iterdir())) == 2
    shown, rows = events(folder / "tensorboard"), pd.read_csv(folder / "metrics.csv")
    assert shown.Tags()["scalars"] == list(rows.columns[1:])
    for tag in rows.columns[1:]:
        expected = rows[["epoch", tag]].to_dict("list")
        assert points(shown, tag) == {key: pytest.approx(x) for key, x in expected.items()}


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


def test_each_fold_has_its_folder(place, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(place)
    words = "--data data --checkpoint checkpoint --mode finetune --protocol paper --folds 2"
    more = "--epochs 2 --limit_batches 1 --save folds --device cpu --tensorboard"
    assert here(test_JAFFE, f"{words} {more}") == 0
    folder = place / "saved_models" / "folds" / "tensorboard"
    assert sorted(path.name for path in folder.iterdir()) == ["fold_1", "fold_2"]
    for fold in folder.iterdir():
        assert points(events(fold), "test_accuracy")["epoch"] == [1, 2]


def test_without_the_package_only_the_flag_is_refused(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    words = command(TRAIN, data, tmp_path, "--epochs", "1")[2:]
    assert here(train_FER2013, [*words, "--save", "t", "--tensorboard"]) == 2
    assert capsys.readouterr().err.endswith(
        "error: --tensorboard: needs the package tensorboard; pip install -r "
        "requirements-tensorboard.txt\n"
    )
    assert not (tmp_path / "t").exists()
    assert here(train_FER2013, [*words, "--save", "u"]) == 0
