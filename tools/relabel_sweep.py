"""Relabel over a grid of the two thresholds, and draw accuracy against them.

python -m tools.relabel_sweep --out saved_models/sweep -- --checkpoint saved_models/RUN --epochs 5

What follows `--` goes to relabel_training.py as it is. Every cell of the grid is a run of that
script in a folder of its own below --out; started again, the command goes on where it was stopped.
Writes `sweep.csv` (a row a cell) and `sweep.png`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import relabel_training
from tools import cli
from tools.plots_relabel import draw_sweep
from tools.report import format_table
from utils import UserError, write_rows, write_text


def thresholds(text: str) -> list[float]:
    """argparse type: numbers of at least 0, separated by commas."""
    return [cli.non_negative(each) for each in text.split(",")]


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
    parser.add_argument("--out", default="saved_models/sweep", metavar="FOLDER",
        help="where the run folders, the table and the picture go (default: saved_models/sweep, "
        "which git ignores)")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG",
        help="flags of relabel_training.py, the same for every cell")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the cells that are not done, then tabulate and draw them all; returns the rows."""
    own = relabel_training.build_parser().parse_args(args.flags)
    if own.checkpoint is None or own.save or own.resume:
        raise UserError("after --: expected --checkpoint, and neither --save nor --resume")
    out = cli.make_folder("--out", args.out)
    _keep_apart(out / "flags.txt", shlex.join(args.flags))
    rows = []
    for relabel_threshold in args.relabel_thresholds:
        for fes_threshold in args.fes_thresholds:
            cell = {"relabel_threshold": relabel_threshold, "fes_threshold": fes_threshold}
            summary = _run(out / f"relabel_{relabel_threshold:g}_fes_{fes_threshold:g}", cell,
                           args.flags)  # fmt: skip
            figures = {name: each["accuracy"] for name, each in summary["figures"].items()}
            changed = summary["last_epoch"].get("changed", 0)
            rows.append({**cell, **figures, "chosen_epoch": summary["chosen_epoch"],
                         "changed_in_last_epoch": changed})  # fmt: skip
    write_rows(rows, out / "sweep.csv")
    draw_sweep(rows, out / "sweep.png")
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    print(f"\nweights chosen on PublicTest; written: {out / 'sweep.csv'} {out / 'sweep.png'}")
    return {"rows": rows}


def _keep_apart(path: Path, flags: str) -> None:
    """Refuse to mix runs of different flags in one folder."""
    before = path.read_text().strip() if path.is_file() else flags
    if before != flags:
        raise UserError(f"--out {path.parent}: holds a sweep with `{before}`, expected the same "
                        "flags after --, or another folder")  # fmt: skip
    write_text(path, flags + "\n")


def _run(folder: Path, cell: dict[str, float], flags: list[str]) -> dict[str, Any]:
    """The summary of one cell: run, resumed, or as it was left by an earlier sweep."""
    done = folder / "summary.json"
    if not done.is_file():
        script = str(Path(relabel_training.__file__))
        if (folder / "checkpoint.pt").is_file():
            words = [script, "--resume", str(folder)]
        else:
            chosen = [f"--{name}={value:g}" for name, value in cell.items()]
            # An absolute label lies where it says, whatever --model_path is.
            words = [script, *flags, *chosen, "--save", str(folder.resolve())]
        status = subprocess.run([sys.executable, *words], check=False).returncode
        if not done.is_file():
            raise UserError(f"{folder}: stopped with status {status}; the same command goes on")
    return json.loads(done.read_text())


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
