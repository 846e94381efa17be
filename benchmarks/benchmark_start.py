"""How long a training takes to start: from the command line to the end of its first step."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from statistics import median

import torch

from benchmarks.benchmark_pairs import ROOT
from benchmarks.benchmark_parts import Figures, take_turns
from data.fer2013 import load_fer2013
from utils import UserError

FIRST_STEP = "epoch 1 step 1/"


def measure_start(args: argparse.Namespace, device: torch.device) -> Figures:
    """Time train_FER2013.py up to its first step, the data cached, beside the import of torch."""
    load_fer2013(args.data, report=print)  # cached from here on
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable, "train_FER2013.py", "--arch", "--data", args.data, "--report_freq", "1",
            "--batch_size", str(args.batch_size), "--device", str(device), "--model_path", folder,
        ]  # fmt: skip
        torch_alone = [sys.executable, "-c", "import torch"]
        seconds = take_turns(
            args.rounds,
            {
                "from the command line through the first step": lambda: to_first_step(words),
                "the import of torch alone": lambda: subprocess.run(torch_alone, check=True),
            },
        )
    rows = [(name, median(each), min(each)) for name, each in seconds.items()]
    return Figures("seconds", rows, [f"the full network, batches of {args.batch_size}"])


def to_first_step(words: list[str]) -> None:
    """Run a training until it reports its first step, then kill it; UserError if it never does."""
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        last = ""
        for line in process.stderr:
            if line.startswith(FIRST_STEP):
                process.kill()
            last = line.strip() or last
    if process.returncode != -signal.SIGKILL:
        raise UserError(f"train_FER2013.py: ended before its first step; it said: {last}")
