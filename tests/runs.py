"""Command lines for the tests and a network to start from; `benchmarks.runs` starts them."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.runs import (  # noqa: F401 (for the tests)
    ROOT,
    Child,
    command,
    difference,
    run,
    same,
    stop_when,
    without_times,
)
from common.cli import run_script
from genotypes import Auto_FERNet, format_genotype
from model import build_network
from utils import save_checkpoint

# Seconds within which a run ends on the slowest machine.
LIMIT = 600

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
    content = {
        "model": description,
        "state_dict": build_network(description).state_dict(),
        "epoch": 2,
        "epochs": 10,
        "drop_path_prob": 0.2,
        "metrics": {},
    }
    save_checkpoint(path, "weights", content)
    return path


def ended(words: list[str], log: Path, cwd: Path = ROOT) -> tuple[int, str]:
    """Run a command line in a forked process; its status and what it printed."""
    child = Child(words[1:], log, cwd=cwd)
    return child.wait(LIMIT), child.printed()


def here(script: ModuleType, words: list[str] | str) -> int:
    """Run a command line, given without the script, in this process; its status."""
    argv = words.split() if isinstance(words, str) else words
    return run_script(script.main, script.build_parser(), argv)


def finish(words: list[str], log: Path, cwd: Path = ROOT) -> str:
    """Run forked to the end, with status 0; what it printed."""
    status, printed = ended(words, log, cwd)
    assert status == 0, printed
    return printed


def raise_after(line: str, number: int, rank: int = 0) -> None:
    """Let this process, if it is `rank`, send itself signal `number` when it first logs `line`.

    The step of the line is done then, and the next not begun, however fast the machine is.
    """
    make, left = logging.getLogRecordFactory(), [line]

    def factory(*args, **options) -> logging.LogRecord:
        record = make(*args, **options)
        if left and left[0] in record.getMessage():
            left.clear()
            signal.raise_signal(number)
        return record

    if int(os.environ.get("RANK", "0")) == rank:
        logging.setLogRecordFactory(factory)


def cut(words: list[str], line: str, number: int, log: Path, cwd: Path = ROOT) -> tuple[int, str]:
    """`ended`, with `raise_after`."""
    child = Child(words[1:], log, before=partial(raise_after, line, number), cwd=cwd)
    return child.wait(LIMIT), child.printed()


def kill(words: list[str], line: str, log: Path) -> None:
    """`cut` by SIGKILL."""
    status, printed = cut(words, line, signal.SIGKILL, log)
    assert status == -signal.SIGKILL, printed


def read(folder: Path) -> dict:
    """The checkpoint of a run."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)
