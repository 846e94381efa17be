"""Mean accuracies of runs over their seeds, and the differences between groups of runs.

    python -m tools.compare saved_models/seed-*
    python -m tools.compare saved_models/recipe_paper_* saved_models/recipe_* --out compared

Runs are a group when their folders have the same name up to a number at the end (`paper_0`,
`paper_1`). Runs of a group may differ only in their seed, fold and place; folds that were jobs of
their own (`--fold`) count as one run of their seed. Reads `summary.json` of each run, and its flags
from `checkpoint.pt` if there is one. Lists runs without a summary and missing folds.

Of one group it prints for each split or set the mean over seeds, its standard deviation and the
95 % interval of the mean by Student's t. Of several it prints for each the mean and the mean
difference to the first, with their intervals, a star where the interval of the difference excludes
0, and the settings in which it differs from the first. Runs of one seed begin with the same weights
and batches where the settings allow it, so differences are taken seed by seed. With --out writes
`compare.csv` and, of several groups, `compare.png`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student

from common import cli
from common.arguments import new_parser
from common.plots import (
    INK,
    PALE,
    QUIET,
    SPLIT_COLOURS,
    new_figure,
    quiet,
    save_figure,
    whole_epochs,
)
from common.report import count_images, format_table
from common.training import load_weights_of
from common.weights import CHOSEN
from runtime.errors import UserError, reading
from runtime.files import make_folder, write_text
from utils import load_checkpoint

NUMBER = re.compile(r"[-_]?\d+$")
# Flags that may differ within a group: where runs ran, names, and what they printed.
FREE = {
    "seed", "fold", "save", "resume", "model_path", "data", "device", "gpu", "report_freq",
    "time_limit", "compile", "tensorboard", "save_folds", "started",
    "checkpoint", "arch", "model_names",  # each seed may have weights or searches of its own
}  # fmt: skip
# Entries of the summary that must be equal, too; the genotype is the result of a search.
ALIKE = ("script", "protocol", "parameters", "epochs")
DETAILS = ("mode", "folds", "tta")


@dataclass(frozen=True)
class FinishedRun:
    """The settings of a run that has ended, and its accuracies in percent by split or set.

    `start`: the digest of the weights that a fold was fine-tuned from, None if unknown. `curve`:
    PublicTest accuracy after each epoch, empty if unknown.
    """

    folder: Path
    seed: int
    fold: int | None
    folds: int | None
    start: str | None
    settings: dict[str, Any]
    accuracy: dict[str, float]
    minutes: float
    curve: list[float]


@dataclass
class Group:
    """Runs of the same settings; `missing` says which runs and folds have no summary.

    `accuracy`: percent, a row for each seed (mean over folds), a column for each split or set.
    """

    name: str
    runs: list[FinishedRun] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    accuracy: pd.DataFrame = field(default_factory=pd.DataFrame)


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "python -m tools.compare")
    # fmt: off
    parser.add_argument("runs", nargs="+", metavar="RUN",
        help="run folders; those whose names differ in a number at the end alone are a group, and "
        "the others are compared with the first group; repetitions are ignored")
    parser.add_argument("--out", metavar="FOLDER",
        help="folder of compare.csv and compare.png (default: only print the tables)")
    # fmt: on
    return parser


def read_run(folder: Path) -> FinishedRun | None:
    """The run in `folder`, None without summary.json; UserError if that is not of a run."""
    path = folder / "summary.json"
    if not path.is_file():
        return None
    with reading(path, "the summary of a run"):
        summary = json.loads(path.read_bytes())
        figures, details, seed = summary["figures"], summary["details"], int(summary["seed"])
        accuracy = {name: float(figure["accuracy"]) for name, figure in figures.items()}
        if not accuracy or not all(map(math.isfinite, accuracy.values())):
            raise ValueError("no finite accuracies")
        fold, folds = details.get("fold"), details.get("folds")
        minutes = float(summary["seconds"]) / 60
        settings = {name: summary[name] for name in ALIKE}
        settings |= {name: details.get(name) for name in DETAILS}
        if summary["script"] != "search.py":
            settings["genotype"] = summary["genotype"]
        if fold is None:
            settings["images"] = {name: count_images(figure) for name, figure in figures.items()}
        settings["figures of"] = ", ".join(accuracy)
    start, curve = None, []
    path = folder / "checkpoint.pt"
    if path.is_file():
        saved = load_checkpoint(path, ["training", "search", "folds"])
        with reading(path, "the checkpoint of a run"):
            settings |= {f"--{name}": v for name, v in saved["args"].items() if name not in FREE}
            if saved["kind"] == "folds":
                settings["digest of --data"] = saved["inputs"]["data"]
                start = saved["inputs"]["checkpoint"]
                ends = [[fold["accuracy"] for fold in saved["folds"]]]
                told = [figure["folds"] for figure in figures.values()]
            else:
                history = saved["state"]["history"]
                ends, told = history[-1:], [details["last_epoch"]]
            if ends != told:
                raise ValueError("summary.json is of another run, or of before this one went on")
            if saved["kind"] == "training":
                curve = [float(r["PublicTest_accuracy"]) for r in history]
                if (folder / CHOSEN).is_file():
                    load_weights_of(folder / CHOSEN, history)
    return FinishedRun(folder, seed, fold, folds, start, settings, accuracy, minutes, curve)


def check_alike(runs: Sequence[FinishedRun]) -> None:
    """Raise UserError unless the runs differ only in seed and fold, each pair of them once.

    The folds of a seed must be fine-tuned from the same weights.
    """
    first = runs[0]
    seen: dict[Any, FinishedRun] = {}
    for run in runs:
        check_same(first, run, {**first.settings, **run.settings})
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


def check_same(first: FinishedRun, run: FinishedRun, names: Iterable[str]) -> None:
    """Raise UserError where the two runs differ in one of the settings."""
    for name in names:
        here, there = first.settings.get(name), run.settings.get(name)
        if here != there:
            raise UserError(
                f"{run.folder}: {name} {there}, but {first.folder} has {here}; expected runs of a "
                "group to differ only in their seed or fold, and groups in no split or set"
            )


def read_groups(folders: Iterable[Path]) -> list[Group]:
    """The groups of the runs in `folders`, in their order; UserError where runs are not alike."""
    groups: dict[str, Group] = {}
    for folder in dict.fromkeys(folders):
        name = NUMBER.sub("", folder.name) or folder.resolve().parent.name
        name = name.encode(errors="backslashreplace").decode()
        group = groups.setdefault(name, Group(name))
        run = read_run(folder)
        if run is None:
            group.missing.append(f"{folder}: no summary.json")
        else:
            group.runs.append(run)
    for group in groups.values():
        if not group.runs:
            raise UserError(f"{group.missing[0]} in any of {len(group.missing)} runs")
        check_alike(group.runs)
        check_same(next(iter(groups.values())).runs[0], group.runs[0], ["figures of"])
        seeds = [run.seed for run in group.runs]
        accuracy = pd.DataFrame([run.accuracy for run in group.runs], index=seeds)
        group.accuracy = accuracy.groupby(level=0).mean()
        for seed in group.accuracy.index:
            done = {run.fold for run in group.runs if run.seed == seed}
            wanted = range(1, (group.runs[0].folds or 0) + 1) if None not in done else ()
            if absent := [str(fold) for fold in wanted if fold not in done]:
                which = f"fold {', '.join(absent)} of {len(wanted)}"
                group.missing.append(f"{group.name}, seed {seed}: {which}")
    return list(groups.values())


def summarise(values: pd.Series) -> dict[str, float]:
    """Mean, sample deviation, half width of the 95 % interval; by suffix of a column, or NaN.

    Of two values there is no interval: by Student's t it would be nine times their distance.
    """
    half = student.ppf(0.975, len(values) - 1) * values.sem() if len(values) > 2 else math.nan
    return {"": values.mean(), "_deviation": values.std(), "_interval95": half}


def table_row(group: Group, first: Group) -> dict[str, Any]:
    """The row of compare.csv: the figures of a group, and its differences to the first."""
    here, there = group.runs[0].settings, first.runs[0].settings
    names = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    row = {
        "group": group.name,
        "seeds": " ".join(map(str, group.accuracy.index)),
        "runs": len(group.runs),
        "epochs": here["epochs"],
        "minutes": sum(run.minutes for run in group.runs) / len(group.runs),
        # A genotype is too long for a line.
        "settings": ", ".join(n if n == "genotype" else f"{n} {here.get(n)}" for n in names),
    }
    for split in first.accuracy:
        # Seeds that the first group does not have become NaN.
        apart = (group.accuracy[split] - first.accuracy[split]).dropna()
        parts = {"": group.accuracy[split], "_difference": apart[: 0 if group is first else None]}
        for part, values in parts.items():
            row |= {f"{split}{part}{key}": value for key, value in summarise(values).items()}
    return row


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print the tables and write --out; return the rows by group and what is missing."""
    groups = read_groups(map(Path, args.runs))
    first = groups[0]
    rows = {group.name: table_row(group, first) for group in groups}
    if len(groups) == 1:
        print(_format_means(first))
    else:
        print(_format_differences(list(rows.values()), list(map(str, first.accuracy))))
        print(f"\n+: difference to {first.name}, seed by seed; ± and *: 95 % by Student's t")
        for name, row in rows.items():
            if row["settings"]:
                print(f"{name}: {row['settings']}")
    for group in groups:
        counts = group.runs[0].settings.get("images", {}).items()
        if parts := [f"{count} images of {split}" for split, count in counts if " of " in count]:
            print(f"{group.name}: {', '.join(parts)}")
    missing = [line for group in groups for line in group.missing]
    for line in missing:
        print(f"missing: {line}")
    if args.out is not None:
        out = make_folder("--out", args.out)
        write_text(out / "compare.csv", pd.DataFrame(rows.values()).to_csv(index=False))
        if len(groups) > 1:
            draw_comparison(groups, rows, out / "compare.png")
        print(f"written: {' '.join(map(str, sorted(out.glob('compare.*'))))}")
    return {"groups": rows, "missing": missing}


def _format_means(group: Group) -> str:
    seeds, lines = " ".join(map(str, group.accuracy.index)), []
    columns = ["top-1 accuracy in %", "mean", "deviation", "± 95 %", f"seeds {seeds}"]
    for split, values in group.accuracy.items():
        known = ["" if math.isnan(figure) else figure for figure in summarise(values).values()]
        lines.append([split, *known, " ".join(f"{value:.2f}" for value in values)])
    return format_table(columns, lines)


def _format_differences(rows: Sequence[dict[str, Any]], splits: Sequence[str]) -> str:
    columns = ["", "runs", "epochs", "minutes", *(f"{s}{c}" for s in splits for c in (" %", " +"))]
    lines: list[list[Any]] = []
    for row in rows:
        line = [row["group"], row["runs"], row["epochs"], f"{row['minutes']:.1f}"]
        for split in splits:
            mean, half = row[f"{split}_difference"], row[f"{split}_difference_interval95"]
            star = "*" if abs(mean) > half else ""
            line += [_text(row, split, ""), _text(row, f"{split}_difference", "+") + star]
        lines.append(line)
    return format_table(columns, lines)


def _text(row: dict[str, Any], name: str, sign: str) -> str:
    mean, half = row[name], row[f"{name}_interval95"]
    if math.isnan(mean):
        return ""
    return f"{mean:{sign}.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


# --- the picture


def draw_comparison(
    groups: Sequence[Group], rows: dict[str, dict[str, Any]], path: Path
) -> Figure | None:
    """Draw the curve of each group of trainings, and the differences to the first group.

    `rows`: of `table_row`, by group. A panel without content is left out; None without any.
    """
    splits, draws = list(map(str, groups[0].accuracy)), []
    curves = {
        group.name: pd.DataFrame([run.curve for run in group.runs]).dropna(axis=1).mean()
        for group in groups
    }
    if any(map(len, curves.values())):
        draws.append(lambda axes: _draw_curves(axes, curves))
    if any(not math.isnan(row[f"{splits[0]}_difference"]) for row in rows.values()):
        draws.append(lambda axes: _draw_differences(axes, rows, splits))
    if not draws:
        return None
    figure = new_figure(6.0 * len(draws), max(4.2, 1.5 + 0.4 * len(groups)))
    for axes, draw in zip(figure.subplots(1, len(draws), squeeze=False)[0], draws, strict=True):
        draw(axes)
        axes.grid(color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        quiet(axes)
        # In names of folders a $ does not begin a formula.
        for text in (*axes.get_legend().get_texts(), *axes.get_yticklabels()):
            text.set_parse_math(False)
    figure.set_layout_engine("tight", w_pad=2)
    return save_figure(figure, path)


def _draw_curves(axes: Axes, curves: dict[str, pd.Series]) -> None:
    palette = [INK, *colormaps["tab20"].colors]  # type: ignore[attr-defined]
    for place, (name, values) in enumerate(curves.items()):
        axes.plot(values.index + 1, values, color=palette[place % len(palette)], label=name,
                  linewidth=1.4 if place else 2.4, marker="o", markersize=3)  # fmt: skip
    axes.set_title("PublicTest after each epoch, mean over seeds (%)", fontsize=11, loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(whole_epochs())
    axes.legend(frameon=False, fontsize=8.5)


def _draw_differences(axes: Axes, rows: dict[str, dict[str, Any]], splits: Sequence[str]) -> None:
    first, *names = rows
    for place, split in enumerate(splits):
        means, halves = (
            [rows[name][f"{split}_difference{part}"] for name in names]
            for part in ("", "_interval95")
        )
        places = [row + (place - 0.5) * 0.28 for row in range(len(names))]
        axes.errorbar(means, places, xerr=halves, fmt="o", color=SPLIT_COLOURS.get(split, INK),
                      capsize=3, markersize=5, linewidth=1.4, label=split)  # fmt: skip
    axes.axvline(0, color=QUIET, linewidth=0.9, zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(f"points above {first}, with 95 % intervals", fontsize=11, loc="left",
                   parse_math=False)  # fmt: skip
    # Below, where it covers no interval.
    axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.08),
                ncols=2)  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
