"""Merge the figures of runs that differ in their seed, or in their fold, alone.

    python -m tools.collect saved_models/seed-0 saved_models/seed-1 saved_models/seed-2

Reads `summary.json` of each run, and its flags from `checkpoint.pt` where there is one. Prints, for
each split or set, the mean over seeds of the accuracy, its deviation, and the 95 % interval of the
mean; folds that were jobs of their own (`--fold`) count as one run of their seed. Says which runs
have no summary and which folds are missing, and refuses runs of different settings.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from common import cli
from common.checkpoints import parts_of
from common.report import format_table
from data.bounded import read_json
from utils import UserError, load_checkpoint, write_text

MAX_FOLDS = 10_000  # more than any set has subjects
# Flags that may differ between runs that are merged: where they ran, what they are called and said.
FREE = {
    "seed", "fold", "save", "resume", "model_path", "data", "device", "gpu", "report_freq",
    "time_limit", "compile", "started",
    "checkpoint", "arch", "model_names",  # seeds may go on from weights or searches of their own
}  # fmt: skip
# Of the summary, what must be alike as well; a search's genotype is its result.
ALIKE = ("script", "protocol", "parameters", "epochs")
DETAILS = ("mode", "folds", "tta")


@dataclass(frozen=True)
class Run:
    """A finished run: its settings by name, and its accuracies in percent by split or set.

    `start` is the digest of the weights that a fold was fine-tuned from, `state` the saved state of
    a training, not checked; each where it is known.
    """

    folder: Path
    seed: int
    fold: int | None
    folds: int | None
    start: str | None
    settings: dict[str, Any]
    accuracy: dict[str, float]
    state: dict[str, Any] | None = None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.collect", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--out", metavar="FILE", help="write the same as JSON (default: on the terminal alone)"
    )
    return parser


def read_run(folder: Path) -> Run | None:
    """The run in `folder`, None without summary.json; UserError when that is no run's."""
    path = folder / "summary.json"
    if not path.is_file():
        return None
    found = read_json(path, "the summary of a run")
    try:
        return _run(folder, found)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: {type(error).__name__}: {error}, expected the summary of a run"
        ) from error


def _run(folder: Path, found: Mapping[str, Any]) -> Run:
    accuracy = {name: float(each["accuracy"]) for name, each in found["figures"].items()}
    # Their names are printed.
    if not all(map(str.isprintable, accuracy)) or not all(map(math.isfinite, accuracy.values())):
        raise ValueError("accuracies without a name or a number")
    details, start, state = found["details"], None, None
    fold, folds = details.get("fold"), details.get("folds")
    counted = folds is None or (type(folds) is int and folds <= MAX_FOLDS)
    within = fold is None or (type(fold) is int and folds is not None and 1 <= fold <= folds)
    if not (accuracy and type(found["seed"]) is int and counted and within):
        raise ValueError(f"seed {found['seed']!r}, fold {fold!r} of {folds!r}")
    settings = {name: found.get(name) for name in ALIKE}
    settings |= {name: details.get(name) for name in DETAILS}
    if found["script"] != "search.py":
        settings["genotype"] = found.get("genotype")
    if fold is None:
        settings["images"] = {name: each["images"] for name, each in found["figures"].items()}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file():
        saved = load_checkpoint(checkpoint, ["training", "search", "folds"])
        with parts_of(checkpoint):
            settings |= {f"--{name}": v for name, v in saved["args"].items() if name not in FREE}
            if saved["kind"] == "folds":
                settings["digest of --data"] = saved["inputs"]["data"]
                start = saved["inputs"]["checkpoint"]
            elif saved["kind"] == "training":
                state = saved.get("state")
    return Run(folder, found["seed"], fold, folds, start, settings, accuracy, state)


def check_alike(runs: Sequence[Run]) -> None:
    """Raise UserError for runs of different settings, and for two of one seed and fold.

    The folds of a seed must have been fine-tuned from the same weights, too.
    """
    first, seen, starts = runs[0], {}, {}
    for run in runs:
        names = {*first.settings, *run.settings}
        for name in sorted(names, key=lambda name: (name != "script", name)):
            here, there = first.settings.get(name), run.settings.get(name)
            if here != there:
                raise UserError(
                    f"{run.folder}: {name} {there}, but {first.folder} has {here}; expected runs "
                    "that differ in their seed or fold alone"
                )
        if run.accuracy.keys() != first.accuracy.keys():
            raise UserError(f"{run.folder}: figures of {', '.join(run.accuracy)}, but "
                            f"{first.folder} has {', '.join(first.accuracy)}")  # fmt: skip
        other = seen.setdefault((run.seed, run.fold), run)
        if other is not run:
            what = f"seed {run.seed}" + ("" if run.fold is None else f", fold {run.fold}")
            raise UserError(f"{run.folder}: {what}, as {other.folder}; expected each once")
        other = starts.setdefault(run.seed, run)
        if other.start != run.start:
            raise UserError(
                f"{run.folder}: from other weights than {other.folder}; expected all folds of "
                f"seed {run.seed} from one --checkpoint"
            )
    if len({run.fold is None for run in runs}) > 1:
        raise UserError(f"{first.folder}: some runs are of one fold, others of all; expected one")


def merge(values: Mapping[int, float]) -> dict[str, Any]:
    """Mean, sample deviation and half width of the 95 % interval of the mean, by Student's t."""
    numbers = list(values.values())
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    scale = student.ppf(0.975, len(numbers) - 1) / math.sqrt(len(numbers)) if deviation else 0.0
    return {
        "mean": statistics.mean(numbers),
        "deviation": deviation,
        "interval95": None if deviation is None else float(scale * deviation),
        "seeds": {str(seed): value for seed, value in sorted(values.items())},
    }


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Merge the runs, print the table, write --out; returns what that holds."""
    folders = [Path(name) for name in args.runs]
    found = {folder: read_run(folder) for folder in folders}
    missing = [f"{folder}: no summary.json" for folder, run in found.items() if run is None]
    runs = [run for run in found.values() if run is not None]
    if not runs:
        raise UserError(f"{folders[0]}: no summary.json in any of {len(folders)} runs")
    check_alike(runs)
    seeds = sorted({run.seed for run in runs})
    by_seed = {seed: [run for run in runs if run.seed == seed] for seed in seeds}
    for seed, parts in by_seed.items():
        if parts[0].fold is not None:
            absent = {*range(1, (parts[0].folds or 0) + 1)} - {run.fold for run in parts}
            if absent:
                names = ", ".join(map(str, sorted(absent)))
                missing.append(f"seed {seed}: fold {names} of {parts[0].folds}")
    figures = {
        name: merge(
            {
                seed: statistics.mean(run.accuracy[name] for run in parts)
                for seed, parts in by_seed.items()
            }
        )
        for name in runs[0].accuracy
    }
    rows = [
        [name, *("" if each[k] is None else each[k] for k in ("mean", "deviation", "interval95")),
         " ".join(f"{value:.2f}" for value in each["seeds"].values())]
        for name, each in figures.items()
    ]  # fmt: skip
    columns = ["top-1 accuracy in %", "mean", "deviation", "± 95 %", f"seeds {_listed(seeds)}"]
    print(format_table(columns, rows))
    for line in missing:
        print(f"missing: {line}")
    result = {
        "script": runs[0].settings["script"],
        "runs": [str(run.folder) for run in runs],
        "missing": missing,
        "settings": runs[0].settings,
        "figures": figures,
    }
    if args.out:
        write_text(args.out, json.dumps(result, indent=2, default=str) + "\n")
    return result


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
