"""Merge the figures of runs that differ only in their seed or fold.

    python -m tools.collect saved_models/seed-0 saved_models/seed-1 saved_models/seed-2

Reads `summary.json` of each run, and its flags from `checkpoint.pt` if there is one. Prints for
each split or set the mean accuracy over seeds, its standard deviation, and the 95 % interval of the
mean. Folds that were jobs of their own (`--fold`) count as one run of their seed. Lists runs
without a summary and missing folds; refuses runs of different settings.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import t as student

from common import cli
from common.arguments import new_parser
from common.report import format_table
from data.reading.bounded import read_json
from runtime.errors import UserError, reading
from runtime.files import write_text
from utils import load_checkpoint

MAX_FOLDS = 10_000  # more than any set has subjects
# Flags that may differ between merged runs: where they ran, names, and what they printed.
FREE = {
    "seed", "fold", "save", "resume", "model_path", "data", "device", "gpu", "report_freq",
    "time_limit", "compile", "started",
    "checkpoint", "arch", "model_names",  # each seed may have weights or searches of its own
}  # fmt: skip
# Entries of the summary that must be equal, too; the genotype is the result of a search.
ALIKE = ("script", "protocol", "parameters", "epochs")
DETAILS = ("mode", "folds", "tta")


@dataclass(frozen=True)
class Run:
    """A finished run: its settings, and its accuracies in percent by split or set.

    `start`: the digest of the weights that a fold was fine-tuned from. `history`: the records of
    the epochs of a training. Both None where they are not known.
    """

    folder: Path
    seed: int
    fold: int | None
    folds: int | None
    start: str | None
    settings: dict[str, Any]
    accuracy: dict[str, float]
    history: list[dict[str, Any]] | None = None


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "python -m tools.collect")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", metavar="FILE", help="also write the figures as JSON")
    return parser


def read_run(folder: Path) -> Run | None:
    """The run in `folder`, None without summary.json; UserError if that is not of a run."""
    path = folder / "summary.json"
    if not path.is_file():
        return None
    found = read_json(path, "the summary of a run")
    with reading(path, "the summary of a run"):
        accuracy = {name: float(each["accuracy"]) for name, each in found["figures"].items()}
        if not accuracy or not all(map(math.isfinite, accuracy.values())):
            raise ValueError("no finite accuracies")
        if not all(map(str.isprintable, accuracy)):
            raise ValueError("names of splits are not printable")
        details, seed = found["details"], found["seed"]
        fold, folds = details.get("fold"), details.get("folds")
        known = fold is None or (folds <= MAX_FOLDS and fold in range(1, folds + 1))
        if type(seed) is not int or not known:
            raise ValueError(f"seed {seed!r}, fold {fold!r} of {folds!r}")
        settings = {name: found.get(name) for name in ALIKE}
        settings |= {name: details.get(name) for name in DETAILS}
        if found["script"] != "search.py":
            settings["genotype"] = found.get("genotype")
        if fold is None:
            settings["images"] = {name: each["images"] for name, each in found["figures"].items()}
    start = history = None
    path = folder / "checkpoint.pt"
    if path.is_file():
        saved = load_checkpoint(path, ["training", "search", "folds"])
        with reading(path, "the checkpoint of a run"):
            settings |= {f"--{name}": v for name, v in saved["args"].items() if name not in FREE}
            if saved["kind"] == "folds":
                settings["digest of --data"] = saved["inputs"]["data"]
                start = saved["inputs"]["checkpoint"]
            elif saved["kind"] == "training" and "state" in saved:
                history = saved["state"]["history"]
    return Run(folder, seed, fold, folds, start, settings, accuracy, history)


def check_alike(runs: Sequence[Run]) -> None:
    """Raise UserError unless the runs differ only in seed and fold, each pair of them once.

    The folds of a seed must be fine-tuned from the same weights.
    """
    first = runs[0]
    seen: dict[Any, Run] = {}
    for run in runs:
        names = sorted({*first.settings, *run.settings} - {"script"})
        for name in ("script", *names):
            here, there = first.settings.get(name), run.settings.get(name)
            if here != there:
                raise UserError(
                    f"{run.folder}: {name} {there}, but {first.folder} has {here}; expected runs "
                    "that differ only in their seed or fold"
                )
        if run.accuracy.keys() != first.accuracy.keys():
            found, expected = (", ".join(each.accuracy) for each in (run, first))
            raise UserError(f"{run.folder}: figures of {found}, but {first.folder} has {expected}")
        other = seen.setdefault((run.seed, run.fold), run)
        if other is not run:
            fold = "" if run.fold is None else f", fold {run.fold}"
            raise UserError(
                f"{run.folder}: seed {run.seed}{fold}, as {other.folder}; expected each once"
            )
        other = seen.setdefault(run.seed, run)
        if other.start != run.start:
            raise UserError(
                f"{run.folder}: from other weights than {other.folder}; expected all folds of "
                f"seed {run.seed} from one --checkpoint"
            )


def merge(values: pd.Series) -> dict[str, Any]:
    """Mean, sample deviation and half width of the 95 % interval by Student's t; values by seed."""
    several = len(values) > 1
    half = student.ppf(0.975, len(values) - 1) * values.sem() if several else None
    return {
        "mean": float(values.mean()),
        "deviation": float(values.std()) if several else None,
        "interval95": None if half is None else float(half),
        "seeds": {str(seed): value for seed, value in values.sort_index().items()},
    }


def accuracy_by_seed(runs: Sequence[Run]) -> pd.DataFrame:
    """Accuracies in percent: one row per seed (mean over folds), one column per split or set."""
    seeds = [run.seed for run in runs]
    return pd.DataFrame([run.accuracy for run in runs], index=seeds).groupby(level=0).mean()


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Merge the runs, print the table and write --out; return the content of --out."""
    found = {folder: read_run(folder) for folder in map(Path, args.runs)}
    missing = [f"{folder}: no summary.json" for folder, run in found.items() if run is None]
    runs = [run for run in found.values() if run is not None]
    if not runs:
        raise UserError(f"{args.runs[0]}: no summary.json in any of {len(found)} runs")
    check_alike(runs)
    table = accuracy_by_seed(runs)
    if runs[0].fold is not None:
        for seed in table.index:
            done = {run.fold for run in runs if run.seed == seed}
            absent = [str(k) for k in range(1, (runs[0].folds or 0) + 1) if k not in done]
            if absent:
                missing.append(f"seed {seed}: fold {', '.join(absent)} of {runs[0].folds}")
    figures = {str(name): merge(table[name]) for name in table}
    print(_format(figures, table))
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


def _format(figures: Mapping[str, Mapping[str, Any]], table: pd.DataFrame) -> str:
    seeds = " ".join(map(str, table.index))
    columns = ["top-1 accuracy in %", "mean", "deviation", "± 95 %", f"seeds {seeds}"]
    rows = [
        [name, *("" if each[k] is None else each[k] for k in ("mean", "deviation", "interval95")),
         " ".join(f"{value:.2f}" for value in each["seeds"].values())]
        for name, each in figures.items()
    ]  # fmt: skip
    return format_table(columns, rows)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
