"""Copy the best weights of a run into checkpoints/, with what is known of them in the manifest.

    python -m tools.export_weights RUN NAME --data data/

Writes `NAME.pt`, without the auxiliary head, which training alone uses, and the entry NAME of
`MANIFEST.json`: how the run was started, the sha256 of the weights that it went on from or learnt
from, and the accuracies of the file as it was written, in a single view and over the views of each
--tta. Every script then finds it as `--checkpoint NAME`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common import arguments, cli
from common.manifest import CHECKPOINTS, digest, write_entry
from common.report import format_table
from common.weights import find_weights, load_trained
from data.fer2013 import Split, load_fer2013
from data.views import TTA
from engine import autocast, evaluate_splits
from utils import UserError, load_checkpoint, open_log, save_checkpoint, stop_on_signals

SPLITS = ("PublicTest", "PrivateTest")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
MOST_BYTES = 10_000_000


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.export_weights",
        description=(__doc__ or "").split("\n")[0],
        parents=[arguments.common_parser(batch_size=64, batch_why="as for training", seed=0)],
    )
    # fmt: off
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder, as given or inside --model_path")
    add("name", metavar="NAME", help="what the weights are called: letters, digits, . _ -")
    add("--model_path", default="saved_models", metavar="FOLDER",
        help="where run folders lie (default: saved_models, as for training)")
    add("--out", default=str(CHECKPOINTS), metavar="FOLDER",
        help="where weights and manifest go (default: checkpoints, beside the code)")
    add("--dtype", choices=DTYPES, default="fp32",
        help="precision of the weights (default: fp32, which the full network's still fit)")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Write the weights and their entry; returns the entry."""
    log = open_log()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
        raise UserError(f"{args.name!r}: expected a name of letters, digits and . _ -")
    device = cli.resolve_device(args.device, args.gpu)
    best = find_weights("RUN", args.run, args.model_path)
    training = load_checkpoint(best.parent / "checkpoint.pt", ["training"])
    splits = load_fer2013(args.data, report=log.info)
    # Before the file is written, which may be one of them.
    sources = source_digests(training["args"])
    path = cli.make_folder("--out", args.out) / f"{args.name}.pt"
    write_weights(best, path, DTYPES[args.dtype])
    entry = {
        "file": path.name,
        "sha256": digest(path),
        **(training["args"].get("started") or {}),
        "seeds": [training["args"]["seed"]],
        "from": sources,
    }
    # At once, as the file is no longer what an older entry says.
    write_entry(path.parent, args.name, entry)
    trained = load_trained(path, layers=None, init_channels=None, arch=None)
    options = {"batch_size": args.batch_size, "precision": autocast(device, args.amp)}
    accuracy: dict[str, dict[str, float]] = {}
    with stop_on_signals(resumable=False) as stop:

        def evaluate(parts: Mapping[str, Split], tta: str = "none") -> dict[str, float]:
            parts = {name: parts[name].map(lambda tensor: tensor.to(device)) for name in SPLITS}
            scored = evaluate_splits(trained.model.to(device), parts, stop=stop, tta=tta, **options)
            return {name: scores.accuracy for name, scores in scored.items()}

        for tta in TTA:
            accuracy[tta] = evaluate(splits, tta)
        # What anybody can evaluate again, with no data set.
        synthetic = evaluate(load_fer2013("synthetic"))
    entry |= {
        "epochs": trained.epochs,
        "chosen_epoch": trained.epoch,
        "genotype": trained.description["genotype"],
        "parameters": trained.model.size,
        "images": {name: len(splits[name].labels) for name in SPLITS},
        "accuracy": accuracy,
        "synthetic": synthetic,
    }
    write_entry(path.parent, args.name, entry)
    rows = [[f"--tta {tta}", *(each[name] for name in SPLITS)] for tta, each in accuracy.items()]
    print(format_table([f"{args.name}, top-1 accuracy in %", *SPLITS], rows))
    print(f"\nwritten: {path}, {path.stat().st_size:,} bytes, and its entry in the manifest")
    return entry


def source_digests(flags: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256, as of now, of the weights that a training's --checkpoint and --teacher name.

    Raises UserError where they are no longer there, as nobody could repeat the training then.
    """
    named = [("--checkpoint", flags.get("checkpoint"))]
    named += [("--teacher", name) for name in flags.get("teacher", [])]
    return {
        name: digest(find_weights(f"RUN's {flag}", name, flags["model_path"]))
        for flag, name in named
        if name
    }


def write_weights(best: Path, path: Path, dtype: torch.dtype) -> None:
    """Write the weights `best` to `path` for inference: no auxiliary head, floats as `dtype`.

    Raises UserError, and writes nothing, when they would not stay below MOST_BYTES.
    """
    found = load_checkpoint(best, ["weights"])
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in found["state_dict"].items()
        if not name.startswith("auxiliary_head.")
    }
    size = sum(value.numel() * value.element_size() for value in state.values())
    if size > MOST_BYTES:
        raise UserError(
            f"{best}: {size:,} bytes of weights, expected at most {MOST_BYTES:,}; try --dtype fp16"
        )
    description = {**found["model"], "auxiliary": False}
    save_checkpoint(path, "weights", {**found, "model": description, "state_dict": state})


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
