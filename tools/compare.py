"""Set the arms of an experiment beside one another, each of a few trainings with other seeds.

    python -m tools.compare saved_models/recipe_paper_* saved_models/recipe_* --out compared

The runs of an arm are called alike but for a number at the end, which says the seed (`paper_0`,
`paper_1`). The first arm is what the others are compared with: runs of one seed begin with the same
weights and batches where the arms allow it, so differences are taken seed by seed. Prints, for each
arm, the mean accuracy and the mean difference, each with its 95 % interval by Student's t; a star
stands where that of the difference leaves out 0. Writes the same, with the settings in which the
arms differ, as `compare.csv`, and `compare.png`.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import cli
from common.checkpoints import parts_of, restore_state
from common.report import format_table
from data.fer2013 import SPLITS
from engine import TrainState
from tools.collect import Run, check_alike, merge, read_run
from tools.plots_compare import draw_comparison
from utils import UserError, write_rows

TESTS = SPLITS[1:]
NUMBER = re.compile(r"[-_]?\d+$")


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, in the order of their seeds, and the records of their epochs."""

    name: str
    runs: list[Run]
    histories: list[list[dict[str, Any]]]

    def accuracy(self, split: str) -> dict[int, float]:
        """Top-1 in percent by seed, of the weights chosen on PublicTest."""
        return {run.seed: run.accuracy[split] for run in self.runs}

    @property
    def curve(self) -> list[float]:
        """PublicTest top-1 in percent after each epoch that all reached, mean over seeds."""
        epochs = zip(*self.histories, strict=False)
        return [statistics.mean(r["PublicTest_accuracy"] for r in records) for records in epochs]

    @property
    def minutes(self) -> float:
        """How long a run took, mean over seeds."""
        return statistics.mean(sum(r["seconds"] for r in h) for h in self.histories) / 60


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="run folders of trainings, those of the arm to compare with first; named twice they "
        "count once",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER",
        help="where compare.csv and compare.png go (default: on the terminal alone)",
    )  # fmt: skip
    return parser


def read_arm(name: str, folders: Sequence[Path]) -> Arm:
    """The arm of the runs in `folders`; UserError unless all ended and differ in seed alone."""
    found = []
    for folder in folders:
        run = read_run(folder)
        if run is None:
            raise UserError(f"{folder}: no summary.json, expected a training that has ended")
        path = folder / "checkpoint.pt"
        if run.state is None:
            raise UserError(f"{path}: no state of a training, expected a training that has ended")
        with parts_of(path):
            state = restore_state(TrainState, run.state)
            names = {f"{split}_accuracy" for split in TESTS}
            if not (state.history and all(names <= record.keys() for record in state.history)):
                raise ValueError("no record of accuracies")
        found.append((run, state.history))
    check_alike([run for run, _ in found])
    found.sort(key=lambda pair: pair[0].seed)
    return Arm(name, [run for run, _ in found], [history for _, history in found])


def difference(arm: Mapping[int, float], reference: Mapping[int, float]) -> dict[str, Any] | None:
    """`collect.merge` of the differences of seeds that both have; None where they share none."""
    shared = {seed: arm[seed] - reference[seed] for seed in arm if seed in reference}
    return merge(shared) if shared else None


def unlike(arm: Arm, reference: Arm) -> str:
    """The settings of `arm` that are not those of `reference`, the genotype as that word alone."""
    here, there = arm.runs[0].settings, reference.runs[0].settings
    names = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    return ", ".join("genotype" if n == "genotype" else f"{n} {here.get(n)}" for n in names)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the arms, print the table, write --out; returns the rows by the name of the arm."""
    groups: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(map(Path, args.runs)):
        groups.setdefault(NUMBER.sub("", folder.name) or folder.name, []).append(folder)
    arms = [read_arm(name, folders) for name, folders in groups.items()]
    reference = arms[0]
    figures = {
        arm.name: {
            split: {
                **merge(arm.accuracy(split)),
                "difference": None
                if arm is reference
                else difference(arm.accuracy(split), reference.accuracy(split)),
            }
            for split in TESTS
        }
        for arm in arms
    }
    columns = ["", "runs", "epochs", "minutes", *(f"{s}{c}" for s in TESTS for c in (" %", " +"))]
    rows = [
        [arm.name, len(arm.runs), arm.runs[0].settings["epochs"], f"{arm.minutes:.1f}",
         *(text for split in TESTS for text in _texts(figures[arm.name][split]))]
        for arm in arms
    ]  # fmt: skip
    print(format_table(columns, rows))
    print(f"\n+: difference to {reference.name}, seed by seed; ± and *: 95 % by Student's t")
    result = {
        arm.name: {"seeds": [run.seed for run in arm.runs], "minutes": arm.minutes,
                   "settings": unlike(arm, reference), "figures": figures[arm.name]}
        for arm in arms
    }  # fmt: skip
    if args.out:
        out = cli.make_folder("--out", args.out)
        write_rows([_row(name, found) for name, found in result.items()], out / "compare.csv")
        draw_comparison({arm.name: arm.curve for arm in arms}, figures, out / "compare.png")
        print(f"written: {out / 'compare.csv'} {out / 'compare.png'}")
    return result


def _texts(figure: Mapping[str, Any]) -> tuple[str, str]:
    """An accuracy and a difference for the table."""

    def text(found: Mapping[str, Any], sign: str) -> str:
        mean, half = found["mean"], found["interval95"]
        return f"{mean:{sign}.2f}" + ("" if half is None else f" ± {half:.2f}")

    apart = figure["difference"]
    if apart is None:
        return text(figure, ""), ""
    half = apart["interval95"]
    star = "*" if half is not None and abs(apart["mean"]) > half else ""
    return text(figure, ""), text(apart, "+") + star


def _row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    row = {"arm": name, "seeds": " ".join(map(str, found["seeds"])), "minutes": found["minutes"]}
    for split, figure in found["figures"].items():
        apart = figure["difference"] or {"mean": None, "interval95": None}
        row |= {
            split: figure["mean"],
            f"{split}_interval95": figure["interval95"],
            f"{split}_difference": apart["mean"],
            f"{split}_difference_interval95": apart["interval95"],
        }
    return {**row, "settings": found["settings"]}


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
