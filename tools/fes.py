"""Compute the Facial Expression Similarity of every two classes from the FER+ votes.

    python -m tools.fes fer2013new.csv --out images
    python -m tools.fes fer2013new.csv --usage Training

Prints the matrix of all rows, as published, or of the rows of --usage. With --out also writes
`fes.csv`, which --fes_matrix reads, and `FES.png`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from common import cli
from common.arguments import new_parser
from common.plots import INK, PALE, QUIET, heat_map, new_figure, save_figure
from data.types import CLASSES, SPLITS
from data.votes import load_votes
from relabelling import fes_matrix, save_fes
from runtime.files import make_folder


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "python -m tools.fes")
    # fmt: off
    parser.add_argument("votes", metavar="VOTES.csv", help="the votes of FER+: fer2013new.csv")
    parser.add_argument("--usage", choices=SPLITS,
        help="rows to use (default: all, as published; the clean protocol uses Training)")
    parser.add_argument("--out", metavar="FOLDER",
        help="folder of fes.csv and FES.png, created if missing (default: only print the matrix)")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print and write the matrix; return it, the number of images and the files' paths."""
    votes = load_votes(args.votes, args.usage)
    # The published figures are of all rows, divided by the lines of the file with its header.
    matrix = fes_matrix(votes, len(votes) + (args.usage is None))
    rows = "all" if args.usage is None else args.usage
    print(f"FES of {len(votes)} images ({rows} rows)")
    table = pd.DataFrame(matrix, index=CLASSES, columns=CLASSES)
    print(table.to_string(float_format="{:.8f}".format))
    written: dict[str, Any] = {"matrix": matrix, "images": len(votes)}
    if args.out is not None:
        folder = make_folder("--out", args.out)
        save_fes(matrix, folder / "fes.csv")
        title = f"Facial expression similarity, {rows} rows ({len(votes):,} images)"
        draw_fes(matrix, CLASSES, folder / "FES.png", title)
        written |= {"table": str(folder / "fes.csv"), "picture": str(folder / "FES.png")}
        print(f"written: {written['table']} {written['picture']}")
    return written


def draw_fes(matrix: np.ndarray, classes: Sequence[str], path: Path | str, title: str) -> Figure:
    """Draw a symmetric matrix of similarities, float (K, K) in [0, 1], as a heat map.

    The diagonal, 1 by definition, is gray, so that the colours show the differences of the pairs.
    """
    size = len(classes)
    pairs = np.ma.masked_where(np.eye(size, dtype=bool), matrix)
    width, height = 1.35 + 0.78 * size, 1.25 + 0.56 * size
    figure = new_figure(width, height)
    axes = figure.add_axes((1.0 / width, 0.7 / height, 0.78 * size / width, 0.56 * size / height))
    axes.set_facecolor(PALE)
    heat_map(axes, pairs, classes, classes, float(pairs.max()) or 1.0, form="{:.4f}", lines=True)
    for place in range(size):
        axes.text(place, place, "1", ha="center", va="center_baseline", fontsize=9.5, color=QUIET)
    axes.tick_params(labelsize=9.5)
    figure.text(0.5, 1 - 0.36 / height, title, ha="center", fontsize=12, color=INK,
                parse_math=False)  # fmt: skip
    return save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
