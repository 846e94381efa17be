"""Relabel over a grid of the two thresholds, and draw accuracy against them.

python -m tools.relabel_sweep --out saved_models/sweep -- --checkpoint saved_models/RUN --epochs 5

What follows `--` goes to relabel_training.py as it is. Every cell of the grid is a run of that
script in a folder of its own below --out; started again, the command goes on where it was stopped.
With `--cell K` it runs one cell, as a job of its own. Writes `sweep.csv` (a row a cell) and
`sweep.png` once all cells are done.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import product
from pathlib import Path
from typing import Any

import relabel_training
from common import arguments, cli
from common.report import format_table
from common.weights import require_weights
from data.bounded import read_json
from data.fer2013 import SPLITS
from tools.plots_relabel import draw_sweep
from utils import UserError, write_rows, write_text

# What the sweep itself says to relabel_training.py.
OWN = ("relabel_threshold", "fes_threshold", "save", "resume", "time_limit")


def thresholds(text: str) -> list[float]:
    """argparse type: numbers of at least 0, separated by commas."""
    return [arguments.non_negative(each) for each in text.split(",")]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.relabel_sweep", description=(__doc__ or "").split("\n")[0]
    )
    # fmt: off
    parser.add_argument("--relabel_thresholds", type=thresholds, default=[0.1, 0.2, 0.3, 0.4],
        metavar="T,T,...", help="values of --relabel_threshold (default: 0.1,0.2,0.3,0.4, around "
        "the published 0.2)")
    parser.add_argument("--fes_thresholds", type=thresholds, default=[0.02, 0.03, 0.05],
        metavar="T,T,...", help="values of --fes_threshold (default: 0.02,0.03,0.05, around the "
        "published 0.03)")
    parser.add_argument("--cell", type=arguments.positive_int, metavar="K",
        help="run the K-th cell of the grid alone, --fes_thresholds varying first (default: all "
        "cells, one after the other)")
    parser.add_argument("--out", default="saved_models/sweep", metavar="FOLDER",
        help="where the run folders, the table and the picture go (default: saved_models/sweep, "
        "which git ignores)")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG",
        help="flags of relabel_training.py, the same for every cell")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the cells that are not done, then tabulate and draw them all; returns the rows.

    Where cells are left, as they are after --cell, says which and returns their names.
    """
    flags = _checked(args.flags)
    out = cli.make_folder("--out", args.out)
    record, given = out / "flags.txt", shlex.join(args.flags)
    before = record.read_text(errors="replace").strip() if record.is_file() else given
    if before != given:
        raise UserError(
            f"--out {out}: holds a sweep with `{before}`, expected the same flags after --, or "
            "another folder"
        )
    grid = product(args.relabel_thresholds, args.fes_thresholds)
    cells = {out / f"relabel_{r!r}_fes_{f!r}": _cell(r, f) for r, f in grid}
    if args.cell is not None and args.cell > len(cells):
        raise UserError(f"--cell {args.cell}: expected 1 to {len(cells)}, the cells of the grid")
    for folder in list(cells)[slice(args.cell and args.cell - 1, args.cell)]:
        if not (folder / "summary.json").is_file():
            # The checkpoint is asked for only where something is left to run.
            require_weights(flags["checkpoint"], flags.get("model_path", "saved_models"))
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


def _cell(relabel_threshold: float, fes_threshold: float) -> dict[str, float]:
    return {"relabel_threshold": relabel_threshold, "fes_threshold": fes_threshold}


def _figures(folder: Path) -> dict[str, Any]:
    """What a row of the table has of the run of a cell."""
    path = folder / "summary.json"
    summary = read_json(path, "the summary of a run")
    try:
        details = summary["details"]
        return {
            **{name: float(summary["figures"][name]["accuracy"]) for name in SPLITS[1:]},
            "chosen_epoch": int(details["chosen_epoch"]),
            "changed_in_last_epoch": int(details["last_epoch"].get("changed", 0)),
        }
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: {type(error).__name__}: {error}, expected the summary of a cell"
        ) from error


def _checked(words: list[str]) -> dict[str, Any]:
    """The flags of relabel_training.py that `words` give; UserError for those the sweep sets."""
    parser = relabel_training.build_parser()
    cli.parse(parser, words)
    flags = cli.flags_given(parser, words)
    wrong = [f"--{name}" for name in flags if name in OWN]
    if wrong or "checkpoint" not in flags:
        raise UserError(
            f"after --: found {' '.join(wrong) or 'no --checkpoint'}, expected --checkpoint and "
            f"none of {' '.join(f'--{name}' for name in OWN)}"
        )
    return flags


def _run(folder: Path, cell: dict[str, float], flags: list[str]) -> None:
    """Run one cell to its end, or go on with it."""
    script = relabel_training.__file__
    if (folder / "checkpoint.pt").is_file():
        words = [script, "--resume", str(folder)]
    else:
        chosen = [f"--{name}={value!r}" for name, value in cell.items()]
        # An absolute label lies where it says, whatever --model_path is.
        words = [script, *flags, *chosen, "--save", str(folder.resolve())]
    status = cli.run_script(words)
    if status != 0:
        raise UserError(f"{folder}: relabel_training.py ended with status {status}, expected 0")


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
