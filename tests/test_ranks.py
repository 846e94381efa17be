"""Several processes: their shares, scripts that count each image once, what ends one or all."""

from __future__ import annotations

import json
import signal
import socket
import sys

import pandas as pd
import pytest
import torch
from rank_runs import EACH, TRAIN, finish, parts, start, words_of
from runs import read, run, stop_when, weights

from benchmarks.runs import Child
from common import ranks
from data.augment import Augmentation, training_batches
from data.fer2013 import Split
from data.relabel import truth_batches


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 12, 77])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_near_equal_parts_of_all_images_and_never_a_single_image(total, count):
    shares = [ranks.share_of(total, count, rank) for rank in range(count)]
    rows = [row for s in shares if s.count for row in range(total)[s.rows]]
    assert rows == list(range(total))
    filled = [s for s in shares if s.count]
    assert [(s.rows.start, s.rows.stop) for s in filled] == parts(total, count)
    assert min(s.count for s in filled) >= min(2, total)
    assert max(s.count for s in filled) - min(s.count for s in filled) <= 1
    assert sum(s.weight for s in shares) == pytest.approx(1)
    for s in shares:
        assert s.largest == shares[0].count
        assert s.count or (s.weight == 0 and s.rows == shares[0].rows)


def test_without_torchrun_nothing_is_exchanged(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", None)
    tensor = torch.rand(3)
    before = tensor.clone()
    with ranks.group() as first:
        assert first()
        ranks.average([tensor], 0.5)
        assert tensor.equal(before)
        assert ranks.total(tensor) is tensor
        assert ranks.gather(tensor) is tensor
        assert ranks.from_first(lambda: 3) == 3
        assert (ranks.rank(), ranks.world_size(), ranks.several()) == (0, 1, False)
        assert ranks.own_share(5) == ranks.Share(slice(0, 5), 5, 1.0, 5)


def test_true_labels_are_those_of_the_share(monkeypatch):
    monkeypatch.setattr(ranks, "own_share", lambda total: ranks.share_of(total, 2, 1))
    labels = torch.arange(21)
    images = torch.zeros(21, 1, 48, 48, dtype=torch.uint8)
    place = {"batch_size": 8, "seed": 3, "epoch": 5}
    split = Split(images, labels, labels + 1000)
    truth = truth_batches(split, **place)
    for _, whole in training_batches(split, augmentation=Augmentation(), **place):
        assert next(truth).equal(whole[(len(whole) + 1) // 2 :] + 1000)


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


def test_an_ensemble_and_a_cross_validation_report_the_same_by_one_and_by_two(place, tmp_path):
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


def test_folds_are_tuned_by_two_processes_whole(place, tmp_path):
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


def test_an_error_of_all_ranks_is_told_once(tmp_path):
    words = words_of(TRAIN, tmp_path / "nowhere.csv", tmp_path)
    children = start(words, 2, tmp_path)
    assert [child.wait() for child in children] == [2, 2]
    assert len(errors(children)) == 1
    assert "no FER2013 there" in errors(children)[0]


def test_an_error_of_one_rank_ends_the_others_without_a_word(data, tmp_path):
    words = words_of(TRAIN, data, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meet = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR":
            "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    children = [
        Child(words, tmp_path / "0.log", environment={**meet, "RANK": "0"}),
        Child(
            words_of(TRAIN, tmp_path / "nowhere.csv", tmp_path), tmp_path / "1.log",
            environment={**meet, "RANK": "1"},
        ),
    ]  # fmt: skip
    assert [child.wait() for child in children] == [2, 2]
    assert [line.split(":")[-1] for line in errors(children)] == [
        errors(children)[0].split(":")[-1]
    ]
    assert "nowhere.csv" in errors(children)[0]
    assert "Traceback" not in children[0].printed() + children[1].printed()


def test_a_killed_rank_ends_the_others_with_a_line_that_says_what_to_do(data, tmp_path):
    children = start(words_of(TRAIN, data, tmp_path, "--save", "run"), 3, tmp_path)
    children[0].wait_for("epoch 2 step 1/")
    children[1].signal(signal.SIGKILL)
    assert [child.wait() for child in children] == [2, -signal.SIGKILL, 2]
    assert len(errors(children)) == 1
    assert "another process of this run has ended" in errors(children)[0]
    assert "--resume" in errors(children)[0]
    assert read(tmp_path / "run")["state"]["epoch"] == 1


def test_tools_are_of_one_process(tmp_path):
    children = start(["tools.cells.py", "Auto_FERNet", "--out", str(tmp_path)], 2, tmp_path)
    assert [child.wait() for child in children] == [2, 2]
    assert "start it with python" in errors(children)[0]
    assert len(errors(children)) == 1


def test_torchrun_passes_a_signal_on_and_the_run_resumes(data, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [*torchrun, *words_of(TRAIN, data, tmp_path), "--save", "run"]
    log = tmp_path / "run" / "log.txt"
    stopped = stop_when(words, "epoch 1 step 2/", signal.SIGTERM, log)
    assert stopped.returncode == 1
    printed = stopped.stderr.read()
    assert "train_FER2013.py: stopped (SIGTERM); saved" in printed
    state = read(tmp_path / "run")["state"]
    assert (state["epoch"], state["step"]) >= (0, 2)
    done = run([*torchrun, *words_of(TRAIN, data, tmp_path), "--resume", "run"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
