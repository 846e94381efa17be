"""Compare the variants of an experiment, each trained with a few seeds.

    python -m tools.compare saved_models/recipe_paper_* saved_models/recipe_* --out compared

The run folders of a variant have the same name up to a number at the end (`paper_0`, `paper_1`).
The first variant is the reference of the others. Runs of one seed begin with the same weights and
batches where the variants allow it, so differences are taken seed by seed. Prints for each variant
the mean accuracy and the mean difference, each with its 95 % interval by Student's t, and a star
where the interval of the difference excludes 0. With --out also writes `compare.csv`, which
contains the settings in which the variants differ, and `compare.png`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from common import cli
from common.arguments import new_parser
from common.plots import INK, OPEN, QUIET, new_figure, quiet, save_figure, whole_epochs
from common.plots import SPLITS as COLOURS
from common.report import format_table
from data.types import SPLITS
from runtime.errors import UserError, reading
from runtime.files import make_folder, write_rows
from tools.collect import Run, accuracy_by_seed, check_alike, merge, read_run

TESTS = SPLITS[1:]
NUMBER = re.compile(r"[-_]?\d+$")


@dataclass(frozen=True)
class Variant:
    """The runs of a variant, in the order of their seeds.

    `curve`: PublicTest accuracy (percent) after each epoch that all runs reached, mean over seeds.
    `minutes`: duration of a run, mean over seeds.
    """

    name: str
    runs: list[Run]
    accuracy: pd.DataFrame
    curve: list[float]
    minutes: float


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "python -m tools.compare")
    # fmt: off
    parser.add_argument("runs", nargs="+", metavar="RUN",
        help="run folders of trainings, those of the reference first; repetitions are ignored")
    parser.add_argument("--out", metavar="FOLDER",
        help="folder of compare.csv and compare.png (default: only print the table)")
    # fmt: on
    return parser


def read_variant(name: str, folders: Sequence[Path]) -> Variant:
    """The variant of the runs in `folders`; UserError unless all ended and differ only in seed."""
    runs, curves, seconds = [], [], []
    for folder in folders:
        run = read_run(folder)
        if run is None:
            raise UserError(f"{folder}: no summary.json, expected a training that has ended")
        path = folder / "checkpoint.pt"
        with reading(path, "the checkpoint of a training that has ended"):
            if not run.history:
                raise ValueError("no records of epochs")
            history = pd.DataFrame(run.history)
            curves.append(history["PublicTest_accuracy"].astype(float))
            seconds.append(float(history["seconds"].sum()))
        runs.append(run)
    check_alike(runs)
    return Variant(
        name,
        sorted(runs, key=lambda run: run.seed),
        accuracy_by_seed(runs),
        pd.concat(curves, axis=1).dropna().mean(axis=1).tolist(),
        sum(seconds) / len(seconds) / 60,
    )


def describe_difference(variant: Variant, reference: Variant) -> str:
    """The settings of `variant` that differ from `reference`; of a genotype only that it does."""
    here, there = variant.runs[0].settings, reference.runs[0].settings
    names = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    return ", ".join("genotype" if n == "genotype" else f"{n} {here.get(n)}" for n in names)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the variants, print the table and write --out; return the rows by variant."""
    groups: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(map(Path, args.runs)):
        groups.setdefault(NUMBER.sub("", folder.name) or folder.name, []).append(folder)
    variants = [read_variant(name, folders) for name, folders in groups.items()]
    reference = variants[0]
    result: dict[str, Any] = {}
    for variant in variants:
        # Seeds that the reference does not have become NaN.
        apart = (variant.accuracy - reference.accuracy).dropna()
        compared = variant is not reference and len(apart) > 0
        figures = {
            split: {**merge(variant.accuracy[split]),
                    "difference": merge(apart[split]) if compared else None}
            for split in TESTS
        }  # fmt: skip
        result[variant.name] = {
            "seeds": [run.seed for run in variant.runs],
            "minutes": variant.minutes,
            "settings": describe_difference(variant, reference),
            "figures": figures,
        }
    columns = ["", "runs", "epochs", "minutes", *(f"{s}{c}" for s in TESTS for c in (" %", " +"))]
    rows = [
        [v.name, len(v.runs), v.runs[0].settings["epochs"], f"{v.minutes:.1f}",
         *(text for split in TESTS for text in _texts(result[v.name]["figures"][split]))]
        for v in variants
    ]  # fmt: skip
    print(format_table(columns, rows))
    print(f"\n+: difference to {reference.name}, seed by seed; ± and *: 95 % by Student's t")
    if args.out:
        out = make_folder("--out", args.out)
        write_rows([_row(name, found) for name, found in result.items()], out / "compare.csv")
        curves = {variant.name: variant.curve for variant in variants}
        figures = {name: found["figures"] for name, found in result.items()}
        draw_comparison(curves, figures, out / "compare.png")
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
        apart = figure["difference"] or {}
        row |= {split: figure["mean"], f"{split}_interval95": figure["interval95"]}
        row[f"{split}_difference"] = apart.get("mean")
        row[f"{split}_difference_interval95"] = apart.get("interval95")
    return {**row, "settings": found["settings"]}


def draw_comparison(
    curves: Mapping[str, Sequence[float]],
    figures: Mapping[str, Mapping[str, Mapping[str, Any]]],
    path: Path | str,
) -> Figure:
    """Draw the curve of each variant, and its differences to the first with 95 % intervals.

    `curves`: PublicTest accuracy (percent) after each epoch, the reference first. `figures`: by
    variant and split, as returned by `main`.
    """
    names = list(curves)
    figure = new_figure(12.0, max(4.2, 1.5 + 0.4 * len(names)))
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    palette = [INK, *colormaps["tab20"].colors]  # type: ignore[attr-defined]
    for place, (name, values) in enumerate(curves.items()):
        first = place == 0
        left.plot(range(1, len(values) + 1), values, color=palette[place % len(palette)],
                  label=name, linewidth=2.4 if first else 1.4, marker="o", markersize=3,
                  zorder=3 if first else 2)  # fmt: skip
    left.set_title("PublicTest after each epoch, mean over seeds (%)", fontsize=11, loc="left")
    left.set_xlabel("epoch")
    left.xaxis.set_major_locator(whole_epochs())
    legends = [left.legend(frameon=False, fontsize=8.5)]
    for place, split in enumerate(figures[names[0]]):
        for row, name in enumerate(names[1:]):
            apart = figures[name][split]["difference"]
            if apart is not None:
                right.errorbar(apart["mean"], row + (place - 0.5) * 0.28, xerr=apart["interval95"],
                               fmt="o", color=COLOURS[split], capsize=3, markersize=5,
                               linewidth=1.4, label=split if row == 0 else None)  # fmt: skip
    right.axvline(0, color=QUIET, linewidth=0.9, zorder=0)
    right.set_yticks(range(len(names) - 1), names[1:])
    right.set_ylim(len(names) - 1.4, -0.6)
    right.set_title(f"points above {names[0]}, with 95 % intervals", fontsize=11, loc="left",
                    parse_math=False)  # fmt: skip
    if len(names) > 1:  # below, where it covers no interval
        right.legend(frameon=False, fontsize=8.5, loc="upper center",
                     bbox_to_anchor=(0.5, -0.08), ncols=2)  # fmt: skip
    for axes in (left, right):
        axes.grid(color=OPEN, linewidth=0.8)
        axes.set_axisbelow(True)
        quiet(axes)
    # In names of folders a $ does not begin a formula.
    for text in (*legends[0].get_texts(), *right.get_yticklabels()):
        text.set_parse_math(False)
    figure.tight_layout(w_pad=2)
    return save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
