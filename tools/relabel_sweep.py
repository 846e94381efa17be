"""Relabel over a grid of the two thresholds, and draw accuracy against them.

python -m tools.relabel_sweep --out saved_models/sweep -- --checkpoint saved_models/RUN --epochs 5

The flags after `--` are passed to relabel_training.py. Every cell of the grid is a run of that
script in a folder of its own below --out; when started again, the command continues where it was
stopped. With `--cell K` it runs one cell, as a job of its own. When all cells are done it writes
`sweep.csv` (one row per cell) and `sweep.png`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

import relabel_training
from common import arguments, cli
from common.parsing import flags_given, parse
from common.plots import INK, QUIET, new_figure, save_figure
from common.plots import SPLITS as COLOURS
from common.report import format_table
from common.weights import find_weights
from data.reading.bounded import read_json
from data.types import SPLITS
from runtime.errors import UserError, reading
from runtime.files import write_rows, write_text
from runtime.folders import make_folder

# Flags of relabel_training.py that the sweep sets itself.
OWN = ("relabel_threshold", "fes_threshold", "save", "resume", "time_limit")


def thresholds(text: str) -> list[float]:
    """argparse type: numbers of at least 0, separated by commas."""
    return [arguments.non_negative(each) for each in text.split(",")]


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m tools.relabel_sweep")
    # fmt: off
    parser.add_argument("--relabel_thresholds", type=thresholds, default=[0.1, 0.2, 0.3, 0.4],
        metavar="T,T,...", help="values of --relabel_threshold")
    parser.add_argument("--fes_thresholds", type=thresholds, default=[0.02, 0.03, 0.05],
        metavar="T,T,...", help="values of --fes_threshold")
    parser.add_argument("--cell", type=arguments.positive_int, metavar="K",
        help="run only the K-th cell of the grid, where --fes_thresholds varies first (default: "
        "all cells, one after the other)")
    parser.add_argument("--out", default="saved_models/sweep", metavar="FOLDER",
        help="folder of the run folders, the table and the picture")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG",
        help="flags of relabel_training.py, the same for every cell")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the cells that are not done, then tabulate and draw all; return the rows.

    If cells are left, as after --cell, print and return their names instead.
    """
    flags = _checked(args.flags)
    out = make_folder("--out", args.out)
    record, given = out / "flags.txt", shlex.join(args.flags)
    before = record.read_text(errors="replace").strip() if record.is_file() else given
    if before != given:
        raise UserError(
            f"--out {out}: holds a sweep with `{before}`, expected the same flags after --, or "
            "another folder"
        )
    cells = {
        out / f"relabel_{r!r}_fes_{f!r}": {"relabel_threshold": r, "fes_threshold": f}
        for r, f in product(args.relabel_thresholds, args.fes_thresholds)
    }
    if args.cell is not None and args.cell > len(cells):
        raise UserError(f"--cell {args.cell}: expected 1 to {len(cells)}, the cells of the grid")
    for folder in list(cells)[slice(args.cell and args.cell - 1, args.cell)]:
        if not (folder / "summary.json").is_file():
            # The checkpoint is needed only if a cell is left to run.
            parent = flags.get("model_path", "saved_models")
            find_weights("--checkpoint", flags["checkpoint"], parent)
            write_text(record, given + "\n")
            _run(folder, cells[folder], args.flags)
    left = [folder.name for folder in cells if not (folder / "summary.json").is_file()]
    if left:
        print(f"{len(left)} of {len(cells)} cells are left: {' '.join(left)}")
        return {"left": left}
    rows = [{**cell, **_figures(folder)} for folder, cell in cells.items()]
    write_rows(rows, out / "sweep.csv")
    draw_sweep(rows, out / "sweep.png")
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    print(f"\nweights chosen on PublicTest; written: {out / 'sweep.csv'} {out / 'sweep.png'}")
    return {"rows": rows}


def _figures(folder: Path) -> dict[str, Any]:
    """The columns of the table that come from the run of a cell."""
    path = folder / "summary.json"
    summary = read_json(path, "the summary of a run")
    with reading(path, "the summary of a cell"):
        details = summary["details"]
        return {
            **{name: float(summary["figures"][name]["accuracy"]) for name in SPLITS[1:]},
            "chosen_epoch": int(details["chosen_epoch"]),
            "changed_in_last_epoch": int(details["last_epoch"].get("changed", 0)),
        }


def _checked(words: list[str]) -> dict[str, Any]:
    """The flags in `words` by name; UserError without --checkpoint and for those in OWN."""
    parser = relabel_training.build_parser()
    parse(parser, words)
    flags = flags_given(parser, words)
    wrong = [f"--{name}" for name in flags if name in OWN]
    if wrong or "checkpoint" not in flags:
        raise UserError(
            f"after --: found {' '.join(wrong) or 'no --checkpoint'}, expected --checkpoint and "
            f"none of {' '.join(f'--{name}' for name in OWN)}"
        )
    return flags


def _run(folder: Path, cell: dict[str, float], flags: list[str]) -> None:
    """Run or resume one cell."""
    words = ["--resume", str(folder)]
    if not (folder / "checkpoint.pt").is_file():
        chosen = [f"--{name}={value!r}" for name, value in cell.items()]
        # An absolute label is independent of --model_path.
        words = [*flags, *chosen, "--save", str(folder.resolve())]
    status = cli.run_command([str(relabel_training.__file__), *words])
    if status != 0:
        raise UserError(f"{folder}: relabel_training.py ended with status {status}, expected 0")


def draw_sweep(rows: Sequence[dict[str, Any]], path: Path | str) -> Figure:
    """Draw top-1 accuracy against --relabel_threshold, one line per --fes_threshold.

    `rows`: dicts with relabel_threshold, fes_threshold, PublicTest and PrivateTest (percent).
    """
    table = pd.DataFrame(rows).pivot(index="relabel_threshold", columns="fes_threshold")
    figure = new_figure(10.5, 4.2)
    for place, split in enumerate(SPLITS[1:]):
        axes = figure.add_axes((0.07 + 0.48 * place, 0.14, 0.42, 0.7))
        for number, (gate, values) in enumerate(table[split].items(), 1):
            strength = 0.35 + 0.65 * number / table[split].shape[1]
            axes.plot(values.index, values, "o-", color=COLOURS[split], alpha=strength,
                      linewidth=1.6, markersize=4.5, label=f"{gate:g}")  # fmt: skip
        axes.set_title(split, fontsize=11, color=INK)
        axes.set_xlabel("--relabel_threshold", fontsize=9.5, color=INK)
        axes.set_ylabel("" if place else "top-1 accuracy in %", fontsize=9.5, color=INK)
        axes.tick_params(labelsize=9, labelcolor=INK, color=QUIET)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(title="--fes_threshold", fontsize=8.5, title_fontsize=8.5, frameon=False)
    figure.text(0.5, 0.94, "Weights chosen on PublicTest, over the thresholds of relabelling",
                ha="center", fontsize=12, color=INK)  # fmt: skip
    return save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
