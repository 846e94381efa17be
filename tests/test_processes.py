"""Several processes: their shards, scripts that count each image once, what ends one or all."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from typing import Any

import pandas as pd
import pytest
from rank_runs import EACH, TRAIN, finish, parts, start, words_of
from runs import LIMIT, raise_after, read, run, stop_when, weights

import train_FER2013
from benchmarks.runs import Child
from runtime.errors import UserError
from runtime.processes import shard_of

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 12, 77])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shards_are_near_equal_and_never_one_image(total, count):
    shards = [shard_of(total, count, number) for number in range(count)]
    filled = [s for s in shards if s.count]
    assert [(s.rows.start, s.rows.stop) for s in filled] == parts(total, count)
    assert min(s.count for s in filled) >= min(2, total)
    assert sum(s.weight for s in shards) == pytest.approx(1)
    for s in shards:
        assert s.largest == shards[0].count
        assert s.count or (s.weight == 0 and s.rows == shards[0].rows)


def test_relabelled_labels_are_counted_once(data, tmp_path):
    checkpoint = weights(tmp_path / "start.pt")
    template = (
        f"relabel_training.py --data {{data}} --checkpoint {checkpoint} --epochs 2 --batch_size 12 "
        "--device cpu --fes False --relabel_threshold {threshold} --model_path {out}"
    )
    counts = {}
    for threshold in ("0", "2"):
        for count in (1, 2):
            name = f"{threshold}-{count}"
            words = template.format(data=data, out=tmp_path, threshold=threshold).split()
            finish([*words, "--save", name], count, tmp_path, name=f"{name}-")
            table = pd.read_csv(tmp_path / name / "changes.csv")
            counts[threshold, count] = table.pivot(index="given", columns="new", values="labels")
    assert counts["0", 1].equals(counts["0", 2]), "nothing changes"
    for count in (1, 2):
        assert (counts["2", count].sum(axis=1) == EACH).all(), "each label counts once"


def test_evaluations_report_the_same_by_two_processes(place, tmp_path):
    commands = {
        "ensemble": f"ensemble.py --data {place}/data --model_names model1,model2 --batch_size 8 "
        f"--model_path {place}/saved_models --device cpu",
        "jaffe": f"test_JAFFE.py --data {place}/data --checkpoint {place}/checkpoint.pt "
        f"--device cpu --model_path {tmp_path}",
    }
    for name, line in commands.items():
        for count in (1, 2):
            finish(
                [*line.split(), "--save", f"{name}{count}"], count, tmp_path, name=f"{name}{count}-"
            )
        folder = place / "saved_models" if name == "ensemble" else tmp_path
        first, second = (
            json.loads((folder / f"{name}{count}" / "summary.json").read_text())["figures"]
            for count in (1, 2)
        )
        for split, figures in first.items():
            assert figures["images"] == second[split]["images"]
            assert figures["accuracy"] == second[split]["accuracy"]


def test_two_processes_finetune_whole_folds(place, tmp_path):
    line = (
        f"test_CK48.py --data {place}/data --checkpoint {place}/checkpoint.pt --epochs 1 --folds 2 "
        f"--batch_size 16 --limit_batches 2 --device cpu --model_path {tmp_path} --save run"
    )
    finish(line.split(), 2, tmp_path)
    folds = read(tmp_path / "run")["folds"]
    assert len(folds) == 2
    assert all(len(fold["logits"]) == len(fold["test_index"]) for fold in folds)


def errors(children: list[Child]) -> list[str]:
    return [line for c in children for line in c.printed().splitlines() if "error:" in line]


def test_error_of_all_processes_is_printed_once(tmp_path):
    words = words_of(TRAIN, tmp_path / "nowhere.csv", tmp_path)
    children = start(words, 2, tmp_path)
    assert [child.wait(LIMIT) for child in children] == [2, 2]
    assert len(errors(children)) == 1
    assert "no FER2013 there" in errors(children)[0]


def lose_data() -> None:
    """Let the second process fail to read the data."""

    def fail(*_args: Any, **_flags: Any) -> None:
        raise UserError("no data here")

    if os.environ["RANK"] == "1":
        train_FER2013.load_set = fail


def test_error_of_one_process_ends_all_and_is_printed_once(data, tmp_path):
    words = words_of(TRAIN, data, tmp_path)
    # The second finds no data.
    children = start(words, 2, tmp_path, before=lose_data)
    assert [child.wait(LIMIT) for child in children] == [2, 2]
    (line,) = errors(children)
    assert "no data here" in line
    assert "Traceback" not in children[0].printed() + children[1].printed()


def test_killed_process_ends_the_others_with_advice(data, tmp_path):
    killed = partial(raise_after, "epoch 2 step 1/", signal.SIGKILL, rank=1)
    words = words_of(TRAIN, data, tmp_path, "--save", "run")
    children = start(words, 3, tmp_path, before=killed)
    assert [child.wait(LIMIT) for child in children] == [2, -signal.SIGKILL, 2]
    assert len(errors(children)) == 1
    assert "another process of this run has ended" in errors(children)[0]
    assert "--resume" in errors(children)[0]
    assert read(tmp_path / "run")["state"]["epoch"] == 1


def test_different_flags_are_told_at_once(data, tmp_path):
    words = words_of(TRAIN, data, tmp_path, "--save", "run")
    others = [*words, "--report_freq", "3", "--teacher", "x"]
    children = start(words, 2, tmp_path, others=others)
    assert [child.wait(LIMIT) for child in children] == [2, 2]
    (line,) = errors(children)
    assert "different report_freq, teacher; expected" in line
    assert not (tmp_path / "run").exists()


def test_places_may_differ_between_machines(data, tmp_path):
    words = words_of(TRAIN, data, tmp_path, "--epochs", "2", "--save", "run")
    there = words_of(TRAIN, data.parent, tmp_path / "elsewhere", "--epochs", "2", "--save", "run")
    finish(words, 2, tmp_path, others=there)


def test_report_of_torchrun_ends_with_our_line(tmp_path):
    done = run([*TORCHRUN, *words_of(TRAIN, tmp_path / "nowhere.csv", tmp_path)])
    assert done.returncode == 1
    assert any("no FER2013 there" in line for line in done.stderr.strip().splitlines()[-3:])


def test_tools_refuse_torchrun(tmp_path):
    children = start(["tools.cells.py", "Auto_FERNet", "--out", str(tmp_path)], 2, tmp_path)
    assert [child.wait(LIMIT) for child in children] == [2, 2]
    assert "start it with python" in errors(children)[0]
    assert len(errors(children)) == 1


def test_torchrun_stops_on_sigterm_and_resumes(data, tmp_path):
    words = [*TORCHRUN, *words_of(TRAIN, data, tmp_path), "--save", "run"]
    log = tmp_path / "run" / "log.txt"
    stopped = stop_when(words, "epoch 1 step 2/", signal.SIGTERM, log)
    assert stopped.returncode == 1
    printed = stopped.stderr.read()
    assert "train_FER2013.py: stopped (SIGTERM); saved" in printed
    state = read(tmp_path / "run")["state"]
    assert (state["epoch"], state["step"]) >= (0, 2)
    done = run([*TORCHRUN, *words_of(TRAIN, data, tmp_path), "--resume", "run"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
