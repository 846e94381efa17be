"""Runs for the tests: their command lines and a network to start from; `benchmarks.runs` starts them."""

from __future__ import annotations

import signal
from pathlib import Path

import torch

from benchmarks.runs import (
    ROOT,
    Child,
    command,
    difference,
    kill_when,
    run,
    same,
    stop_when,
    without_times,
)
from genotypes import Auto_FERNet, format_genotype
from model import build_network
from utils import save_checkpoint

__all__ = [
    "ROOT",
    "SEARCH",
    "SIZE",
    "TRAIN",
    "command",
    "cut",
    "difference",
    "ended",
    "finish",
    "kill",
    "kill_when",
    "read",
    "run",
    "same",
    "stop_when",
    "weights",
    "without_times",
]

SIZE = {"C": 4, "num_classes": 7, "layers": 3, "auxiliary": True}

# Small enough for a test, with everything a real run has: aux head, drop-path, several steps.
TRAIN = (
    "train_FER2013.py --data {data} --arch --init_channels 4 --layers 3 --epochs 3 --batch_size 16 "
    "--limit_batches 4 --drop_path_prob 0.5 --report_freq 1 --device cpu --model_path {out}"
).split()
SEARCH = (
    "search.py --data {data} --init_channels 2 --layers 3 --epochs 3 --batch_size 8 "
    "--batch_increase 4 --warmup_dec_epoch 1 --decision_freq 1 --use_history --post_val "
    "--limit_batches 3 --report_freq 1 --device cpu --model_path {out}"
).split()


def weights(path: Path, seed: int = 0, **changes) -> Path:
    """A checkpoint of an untrained network."""
    torch.manual_seed(seed)
    description = {**SIZE, "genotype": format_genotype(Auto_FERNet), **changes}
    content = {"model": description, "state_dict": build_network(description).state_dict()}
    progress = {"epoch": 2, "epochs": 10, "drop_path_prob": 0.2, "metrics": {}}
    save_checkpoint(path, "weights", {**content, **progress})
    return path


def ended(words: list[str], log: Path, cwd: Path = ROOT) -> tuple[int, str]:
    """The status of a forked run of a command line, and what it printed."""
    child = Child(words[1:], log, cwd=cwd)
    return child.wait(), child.printed()


def finish(words: list[str], log: Path, cwd: Path = ROOT) -> str:
    """Run forked to the end, with status 0; what it printed."""
    status, printed = ended(words, log, cwd)
    assert status == 0, printed
    return printed


def cut(words: list[str], line: str, number: int, log: Path, cwd: Path = ROOT) -> tuple[int, str]:
    """`ended`, with signal `number` once it has printed `line`."""
    child = Child(words[1:], log, cwd=cwd)
    child.wait_for(line)
    child.signal(number)
    return child.wait(), child.printed()


def kill(words: list[str], line: str, log: Path) -> None:
    """`cut` by SIGKILL."""
    status, printed = cut(words, line, signal.SIGKILL, log)
    assert status == -signal.SIGKILL, printed


def read(folder: Path) -> dict:
    """The checkpoint of a run that may go on."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)
