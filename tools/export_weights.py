"""Copy the best weights of a run into checkpoints/, and describe them in the manifest.

    python -m tools.export_weights RUN NAME --data data/

Writes `NAME.pt`, without the auxiliary head, which only training uses, and the entry NAME of
`MANIFEST.json`: how the run was started, the sha256 of the weights that it started from or learnt
from, and the accuracy of the file as written, in a single view and over the views of each --tta.
Renews the model card there, `README.md` (tools.model_card).
relabel_training.py, test_CK48.py, test_JAFFE.py and tools.predict then accept `--checkpoint NAME`,
ensemble.py `--model_names NAME` and train_FER2013.py `--teacher NAME`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common import arguments
from common.cli import run_script
from common.manifest import digest, publish, read_manifest
from common.report import format_table
from common.start import resolve_device
from common.training import EVALUATED, load_weights_of
from common.weights import CHECKPOINTS, find_weights, load_trained, require_classes
from data.sets import load_set
from data.types import CLASSES, Split
from engine import evaluate_splits
from recipe.views import TTA
from runtime.errors import UserError, reading
from runtime.files import make_folder
from runtime.logs import open_log
from runtime.run import Run, autocast
from tools.model_card import write_card
from utils import load_checkpoint, save_checkpoint

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m tools.export_weights")
    # fmt: off
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder, as given or inside --model_path")
    add("name", metavar="NAME", help="name of the weights: letters, digits, . _ -")
    add("--model_path", default="saved_models", metavar="FOLDER", help="where run folders lie")
    add("--out", default=str(CHECKPOINTS), metavar="FOLDER",
        help="folder of weights, manifest and model card (README.md), created if missing")
    add("--dtype", choices=DTYPES, default="fp32", help="precision of the weights")
    # fmt: on
    arguments.add_data_arguments(parser, batch_size=64, seed=0)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Write the weights and their entry; return the entry."""
    open_log()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", args.name):
        raise UserError(f"{args.name!r}: expected a name of letters, digits and . _ -")
    device = resolve_device(args)
    best = find_weights("RUN", args.run, args.model_path)
    origin = best.parent / "checkpoint.pt"
    checkpoint = load_checkpoint(origin, ["training"])
    data = load_set(args.data)
    with reading(origin, "a checkpoint of a training"):
        flags = checkpoint["args"]
        chosen = load_weights_of(best, checkpoint["state"]["history"])
        sources = source_digests(flags)
        started = flags.get("started") or {}
        began = {name: started.get(name) for name in ("command", "commit", "machine")}
        entry = {**began, "seeds": [flags["seed"]], "from": sources}
        json.dumps(entry)
    folder = make_folder("--out", args.out)
    with tempfile.TemporaryDirectory() as place:
        # Evaluated first, so that weights and entry are written together.
        draft = Path(place) / f"{args.name}.pt"
        write_weights(best, draft, DTYPES[args.dtype])
        trained = load_trained(draft)
        require_classes(best, trained.classes, data.classes)
        model, run = trained.model.to(device), Run(folder, device, autocast(device, args.amp))

        def accuracies(splits: Mapping[str, Split], tta: str = "none") -> dict[str, float]:
            parts = {name: splits[name].to(device) for name in EVALUATED}
            scored = evaluate_splits(model, parts, args.batch_size, run, tta)
            return {name: scores.accuracy for name, scores in scored.items()}

        with run.interruptible(resumable=False):
            accuracy = {tta: accuracies(data.splits, tta) for tta in TTA}
            # What anybody can evaluate again, without a data set.
            same = trained.classes == CLASSES
            synthetic = accuracies(load_set("synthetic").splits) if same else None
        entry |= {
            # Of this run: the weights may count the epochs of the training that it went on from.
            "epochs": flags["epochs"],
            "chosen_epoch": chosen["metrics"]["epoch"],
            "genotype": model.description["genotype"],
            "parameters": model.num_parameters,
            "images": {name: len(data.splits[name].labels) for name in EVALUATED},
            "accuracy": accuracy,
            "synthetic": synthetic,
        }
        path = publish(draft, folder, args.name, entry)
        write_card(folder)
    rows = [[f"--tta {tta}", *(row[name] for name in EVALUATED)] for tta, row in accuracy.items()]
    print(format_table([f"{args.name}, top-1 accuracy in %", *EVALUATED], rows))
    print(f"\nwritten: {path}, {path.stat().st_size:,} bytes, and its entry in the manifest")
    return read_manifest(folder)[args.name]


def source_digests(flags: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256, as of now, of the weights that a training's --checkpoint and --teacher name.

    Raises UserError when one is missing, as the training then cannot be repeated.
    """
    named = [("--checkpoint", flags.get("checkpoint"))]
    named += [("--teacher", name) for name in flags.get("teacher", [])]
    return {
        name: digest(find_weights(f"RUN's {flag}", name, flags["model_path"]))
        for flag, name in named
        if name
    }


def write_weights(best: Path, path: Path, dtype: torch.dtype) -> None:
    """Write the weights `best` to `path` for inference: no auxiliary head, floats as `dtype`."""
    content = load_checkpoint(best, ["weights"])
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in content["state_dict"].items()
        if not name.startswith("auxiliary_head.")
    }
    description = {**content["model"], "auxiliary": False}
    save_checkpoint(path, "weights", {**content, "model": description, "state_dict": state})


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
