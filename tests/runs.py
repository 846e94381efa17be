"""Command lines for the tests, what runs them, and a network to start from."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.runs import ONE_THREAD, ROOT, Child, difference, same  # noqa: F401 (for the tests)
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


def command(template: list[str], data: Path | str, out: Path, *more: str) -> list[str]:
    """The words of a script's command line, with `{data}` and `{out}` filled in."""
    return [sys.executable, *(word.format(data=data, out=out) for word in template), *more]


def run(words: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command to its end on one thread, with its output as text."""
    env = {**os.environ, **ONE_THREAD}
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def stop_when(
    words: list[str], line: str, number: int, log: Path, cwd: Path = ROOT
) -> subprocess.Popen[str]:
    """Start a command, send signal `number` once the file `log` holds `line`; wait for its end."""
    env, pipe = {**os.environ, **ONE_THREAD}, subprocess.PIPE
    process = subprocess.Popen(words, cwd=cwd, env=env, stderr=pipe, stdout=pipe, text=True)
    deadline = time.monotonic() + 600
    while not (log.is_file() and line in log.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{line!r} not found in {log}"
        time.sleep(0.002)
    process.send_signal(number)
    process.wait(timeout=60)
    return process


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
