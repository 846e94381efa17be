"""Runs of the scripts by their real command lines, for the tests: start, watch, kill, compare."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from genotypes import Auto_FERNet, format_genotype
from model import build_network
from utils import save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SIZE = {"C": 4, "num_classes": 7, "layers": 3, "auxiliary": True}

# Small enough for a test, with everything a real run has: aux head, drop-path, several steps.
TRAIN = (
    "train_FER2013.py --data {data} --arch --init_channels 4 --layers 3 --epochs 3 --batch_size 16 "
    "--limit_batches 4 --drop_path_prob 0.5 --report_freq 1 --device cpu --model_path {out}"
).split()
SEARCH = (
    "search.py --data {data} --init_channels 2 --layers 3 --epochs 4 --batch_size 8 "
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


def command(template: list[str], data: Path | str, out: Path, *more: str) -> list[str]:
    """The words of a script's command line, its places filled in."""
    words = [word.format(data=data, out=out) for word in template]
    return [sys.executable, *words, *more]


def run(words: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run to the end on one thread, output as text, in the repository or another folder."""
    return subprocess.run(
        words, cwd=cwd, env=_environment(), capture_output=True, text=True, check=False
    )


def stop_when(
    words: list[str], line: str, number: int, log: Path, cwd: Path = ROOT
) -> subprocess.Popen[str]:
    """Start, send signal `number` once the file `log` holds `line`, and wait for the end."""
    process = subprocess.Popen(
        words, cwd=cwd, env=_environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (log.is_file() and line in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{line!r} never came"
        time.sleep(0.002)
    process.send_signal(number)
    process.wait(timeout=60)
    return process


def kill_when(words: list[str], line: str, log: Path) -> None:
    """Start, and kill without warning once `log` holds `line`."""
    assert stop_when(words, line, signal.SIGKILL, log).returncode == -signal.SIGKILL


def same(first: Any, second: Any) -> bool:
    """Whether two nests of tensors and plain values are equal, bit for bit."""
    if torch.is_tensor(first):
        return torch.is_tensor(second) and first.dtype == second.dtype and first.equal(second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without what a clock measured."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def _environment() -> dict[str, str]:
    # Threads change the order of sums, and so the last bits.
    return {**os.environ, "OMP_NUM_THREADS": "1"}
