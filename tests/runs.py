"""Runs for the tests: their command lines and a network to start from; `tools.runs` starts them."""

from __future__ import annotations

from pathlib import Path

import torch

from genotypes import Auto_FERNet, format_genotype
from model import build_network
from tools.runs import (
    ROOT,
    command,
    difference,
    kill_when,
    run,
    same,
    stop_when,
    without_times,
)
from utils import save_checkpoint

__all__ = [
    "ROOT",
    "SEARCH",
    "SIZE",
    "TRAIN",
    "command",
    "difference",
    "kill_when",
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
