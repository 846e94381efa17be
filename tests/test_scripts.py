"""The scripts by their real command lines: what they write, and how they refuse."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from PIL import Image
from runs import ROOT, SEARCH, TRAIN, command, run

import search
import train_FER2013
from common import cli
from genotypes import Auto_FERNet, load_genotype, resolve_genotype
from model import build_network
from utils import load_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_table(tmp_path_factory.mktemp("data"), each=8)


@pytest.fixture(scope="module")
def searched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a search that decides every edge."""
    out = tmp_path_factory.mktemp("searched")
    words = ["search.py", "--data", "{data}", "--init_channels", "2", "--layers", "3",
             "--batch_size", "4", "--batch_increase", "1", "--warmup_dec_epoch", "1",
             "--decision_freq", "1", "--limit_batches", "1", "--model_path", "{out}"]  # fmt: skip
    done = run(command(words, data, out, "--save", "s"))
    assert done.returncode == 0, done.stderr
    return out / "s"


@pytest.fixture(scope="module")
def trained(data: Path, searched: Path) -> Path:
    """The run folder of a training of the cells that the search found."""
    words = [str(searched) if word == "--arch" else word for word in TRAIN]
    words.insert(words.index(str(searched)), "--arch")
    done = run(command(words, data, searched.parent, "--save", "t", "--protocol", "paper"))
    assert done.returncode == 0, done.stderr
    return searched.parent / "t"


def test_a_whole_search_decides_sixteen_edges_and_leaves_what_it_promises(searched):
    rows = list(csv.DictReader((searched / "alphas.csv").open()))
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
    assert log.count("Genotype(normal=") == 14 + 1
    metrics = list(csv.DictReader((searched / "metrics.csv").open()))
    assert [int(row["batch_size"]) for row in metrics] == [4, 4, *range(5, 13), 12, 12, 12, 12]
    for name in ("normal", "reduction", "decisions", "alphas_normal", "alphas_reduce", "curves"):
        with Image.open(searched / f"{name}.png") as picture:
            assert picture.width > 300


def test_a_training_reports_the_weights_chosen_on_publictest(trained):
    summary = json.loads((trained / "summary.json").read_text())
    history = list(csv.DictReader((trained / "metrics.csv").open()))
    public = [float(row["PublicTest_accuracy"]) for row in history]
    private = [float(row["PrivateTest_accuracy"]) for row in history]
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
        right = sum(counts[k][k] for k in range(7))
        total = sum(map(sum, counts))
        accuracy = summary["figures"][split]["accuracy"]
        assert 100 * right / total == pytest.approx(accuracy)
        assert (
            f"top-1 {accuracy:.2f} % of {total} images"
            in (trained / f"{split}_report.txt").read_text()
        )
        assert (trained / f"{split}_confusion.png").is_file()
    assert (trained / "curves.png").is_file()


def test_a_checkpoint_rebuilds_its_network(trained, searched):
    found = load_checkpoint(trained / "weights.pt", ["weights"])
    network = build_network(found["model"])
    network.load_state_dict(found["state_dict"])
    logits, auxiliary = network.eval()(torch.rand(2, 1, 48, 48))
    assert logits.shape == (2, 7)
    assert auxiliary is None
    assert found["model"]["genotype"] + "\n" == (searched / "genotype.txt").read_text()


def test_the_clean_protocol_keeps_no_weights_chosen_on_privatetest(data, tmp_path):
    done = run(command(TRAIN, data, tmp_path, "--save", "t", "--epochs", "1"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "t" / "best_test_weights.pt").exists()


REFUSALS = {
    "no data": (["train_FER2013.py", "--data", "nowhere"], ["nowhere", "--data synthetic"]),
    "no such genotype": (["train_FER2013.py", "--arch", "AutoFERNet"], ["--arch", "Auto_FERNet"]),
    "code for a genotype": (
        ["train_FER2013.py", "--arch", "Genotype(__import__('os').getcwd())"],
        ["--arch"],
    ),
    "no such device": (["search.py", "--device", "cuda:99"], ["--device cuda:99"]),
    "two devices": (["search.py", "--device", "cpu", "--gpu", "0"], ["--gpu 0", "--device cpu"]),
    "nothing to resume": (["search.py", "--resume", "nowhere"], ["--resume nowhere"]),
    "a batch of none": (["search.py", "--batch_size", "0"], ["--batch_size", "at least 1"]),
    "a negative seed": (["search.py", "--seed", "-1"], ["--seed", "-1 found"]),
    "no images for the weights": (
        ["search.py", "--data", "{data}", "--train_portion", "0.001"],
        ["--train_portion 0.001", "0 of 56 images"],
    ),
    "a warm-up without end": (
        ["train_FER2013.py", "--epochs", "3", "--warmup_epochs", "3"],
        ["--warmup_epochs 3", "--epochs 3"],
    ),
    "nesterov without momentum": (
        ["train_FER2013.py", "--nesterov", "--momentum", "0"],
        ["--nesterov", "--momentum 0"],
    ),
    "a folder where none can be": (
        ["search.py", "--data", "{data}", "--model_path", "{data}/below"],
        ["fer2013.csv/below"],
    ),
}


@pytest.mark.parametrize("words, named", REFUSALS.values(), ids=REFUSALS)
def test_a_users_error_is_one_line_and_status_2(words, named, data, tmp_path, capsys):
    script, *argv = [word.format(data=data) for word in words]
    module = {"search.py": search, "train_FER2013.py": train_FER2013}[script]
    argv = ["--model_path", str(tmp_path), *argv]
    try:
        status = cli.run(module.main, module.build_parser(), argv)
    except SystemExit as usage:
        status = usage.code
    assert status == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert "error: " in last
    assert all(part in last for part in named), last
    assert not list(tmp_path.iterdir()), "a refused run leaves no folder"


def test_a_run_folder_is_never_overwritten(data, searched):
    done = run(command(SEARCH, data, searched.parent, "--save", "s"))
    assert done.returncode == 2
    assert "--save s" in done.stderr
    assert "--resume" in done.stderr


@pytest.mark.parametrize("script", ["search.py", "train_FER2013.py"])
def test_help_gives_every_flag_its_default_and_a_reason(script):
    done = run([sys.executable, script, "--help"])
    assert done.returncode == 0
    options = done.stdout[done.stdout.index("\ndata and device") :]
    flags = [line for line in options.split("\n") if line.startswith("  --")]
    assert len(flags) > 20
    for entry in options.replace("\n  --", "\x00--").split("\x00")[1:]:
        assert "default:" in " ".join(entry.split()), entry


def test_importing_a_script_does_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import search, train_FER2013"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_the_default_architecture_is_the_papers():
    parser = train_FER2013.build_parser()
    for argv in ([], ["--arch"]):
        assert resolve_genotype(parser.parse_args(argv).arch) == Auto_FERNet
