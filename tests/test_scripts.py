"""The scripts by their real command lines: what they write, and how they refuse."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from PIL import Image
from runs import ROOT, SEARCH, TRAIN, command, finish, here, run

import search
import train_FER2013
from genotypes import load_genotype
from model import build_network
from utils import load_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_table(tmp_path_factory.mktemp("data"), each=8)


@pytest.fixture(scope="module")
def searched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a search that decides every edge."""
    out = tmp_path_factory.mktemp("searched")
    words = (
        "search.py --data {data} --init_channels 2 --layers 3 --batch_size 4 --batch_increase 1 "
        "--warmup_dec_epoch 1 --decision_freq 1 --limit_batches 1 --device cpu --model_path {out}"
    ).split()
    finish(command(words, data, out, "--save", "s"), out / "s.log")
    return out / "s"


@pytest.fixture(scope="module")
def trained(data: Path, searched: Path) -> Path:
    """The run folder of a training of the cells that the search found."""
    words = command(TRAIN, data, searched.parent, "--save", "t", "--protocol", "paper")
    words.insert(words.index("--arch") + 1, str(searched))
    finish(words, searched.parent / "t.log")
    return searched.parent / "t"


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_search_decides_sixteen_edges(searched):
    rows = read_rows(searched / "alphas.csv")
    assert len(rows) == 14 * 28
    last = [int(row["state"]) for row in rows[-28:]]
    assert sum(state > 0 for state in last) == 16
    assert sum(state == 0 for state in last) == 12
    genotype = load_genotype(searched / "genotype.txt")
    decided = [
        (list(rows[0])[10:][int(row["state"])], int(row["source"]))
        for row in rows[-28:-14]
        if int(row["state"]) > 0
    ]
    assert list(genotype.normal) == decided
    log = (searched / "log.txt").read_text()
    assert log.count("decided: ") == 16
    shown = [line.split("Genotype", 1)[1] for line in log.splitlines() if "Genotype(" in line]
    assert len(shown) == 14 + 1  # one of each epoch, and the last in the table of the end
    batch_sizes = [int(row["batch_size"]) for row in read_rows(searched / "metrics.csv")]
    assert batch_sizes == [4, 4, *range(5, 13), 12, 12, 12, 12]
    for name in ("normal", "reduction", "decisions", "alphas_normal", "alphas_reduce", "curves"):
        with Image.open(searched / f"{name}.png") as picture:
            assert picture.width > 300


def test_training_reports_the_weights_chosen_on_publictest(trained):
    summary = json.loads((trained / "summary.json").read_text())
    history = read_rows(trained / "metrics.csv")
    public, private = (
        [float(row[f"{name}_accuracy"]) for row in history]
        for name in ("PublicTest", "PrivateTest")
    )
    chosen = summary["details"]["chosen_epoch"]
    assert chosen == 1 + public.index(max(public))
    assert summary["figures"]["PrivateTest"]["accuracy"] == pytest.approx(private[chosen - 1])
    assert summary["details"]["oracle"]["PrivateTest_accuracy"] == max(private)
    assert load_checkpoint(trained / "best_val_weights.pt", ["weights"])["epoch"] == chosen
    oracle = load_checkpoint(trained / "best_test_weights.pt", ["weights"])
    assert oracle["epoch"] == 1 + private.index(max(private))
    for split in ("PublicTest", "PrivateTest"):
        table = list(csv.reader((trained / f"{split}_confusion.csv").open()))
        counts = [[int(value) for value in row[1:]] for row in table[1:]]
        right, total = sum(counts[k][k] for k in range(7)), sum(map(sum, counts))
        accuracy = summary["figures"][split]["accuracy"]
        assert 100 * right / total == pytest.approx(accuracy)
        report = (trained / f"{split}_report.txt").read_text()
        assert f"top-1 {accuracy:.2f} % of {total} images" in report
        assert (trained / f"{split}_confusion.png").is_file()
    assert (trained / "curves.png").is_file()


def test_checkpoint_rebuilds_its_network(trained, searched):
    found = load_checkpoint(trained / "weights.pt", ["weights"])
    network = build_network(found["model"])
    network.load_state_dict(found["state_dict"])
    logits, auxiliary = network.eval()(torch.rand(2, 1, 48, 48))
    assert logits.shape == (2, 7)
    assert auxiliary is None
    assert found["model"]["genotype"] + "\n" == (searched / "genotype.txt").read_text()


def test_clean_protocol_keeps_no_weights_chosen_on_privatetest(data, tmp_path):
    assert (
        here(train_FER2013, command(TRAIN, data, tmp_path, "--save", "t", "--epochs", "1")[2:]) == 0
    )
    assert (tmp_path / "t" / "best_val_weights.pt").exists()
    assert not (tmp_path / "t" / "best_test_weights.pt").exists()


REFUSALS = {
    "no data": ("train_FER2013 --data nowhere", ["nowhere", "--data synthetic"]),
    "code for a genotype": (
        "train_FER2013 --data {data} --arch Genotype(__import__('os').getcwd())", ["--arch"]
    ),
    "no such device": ("search --device cuda:99", ["--device cuda:99"]),
    "two devices": ("search --device cpu --gpu 0", ["--gpu 0", "--device cpu"]),
    "nothing to resume": ("search --resume nowhere", ["--resume nowhere"]),
    "a batch of none": ("search --batch_size 0", ["--batch_size", "0 found, 1 to"]),
    "no images for the weights": ("search --data {data} --train_portion 0.001",
                                  ["--train_portion 0.001", "0 of 56 images"]),
    "a folder inside a file": ("search --data {data} --model_path {data}/below",
                               ["fer2013.csv/below"]),
}  # fmt: skip


@pytest.mark.parametrize("words, named", REFUSALS.values(), ids=REFUSALS)
def test_errors_are_one_line_with_status_2(words, named, data, tmp_path, capsys):
    script, *argv = words.format(data=data).split()
    module = {"search": search, "train_FER2013": train_FER2013}[script]
    try:
        status = here(module, ["--model_path", str(tmp_path), *argv])
    except SystemExit as usage:
        status = usage.code
    assert status == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert "error: " in last
    assert all(part in last for part in named), last
    assert not list(tmp_path.iterdir()), "a refused run leaves no folder"


def test_a_run_folder_is_never_overwritten(data, searched, capsys):
    assert here(search, command(SEARCH, data, searched.parent, "--save", "s")[2:]) == 2
    printed = capsys.readouterr().err
    assert "--save s" in printed
    assert "--resume" in printed


def test_importing_a_script_does_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import search, train_FER2013"
    done = run([sys.executable, "-c", code], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
