"""Draw the path from the search to the tests on other data sets as `overview.png`.

python -m tools.overview --out images
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from common import cli
from common.plots import INK, QUIET, new_figure, save_figure

WIDTH, HEIGHT = 13.4, 5.2
# What a box is: fill and border.
KINDS = {
    "data": ("#f6e3a1", "#a98a25"),
    "script": ("#bcdaf0", "#3f78a8"),
    "file": ("#eef0f2", "#8b949e"),
}
# Name: kind, centre, text; places in inches.
BOXES = {
    "fer": ("data", (1.0, 2.95), "FER2013"),
    "search": ("script", (3.0, 4.25), "search.py\nSGAS on a supernet"),
    "genotype": ("file", (5.6, 4.25), "genotype.txt\nnormal + reduction cell"),
    "train": ("script", (5.6, 2.95), "train_FER2013.py\nfrom scratch"),
    "weights": ("file", (8.8, 2.95), "best_val_weights.pt\nchosen on PublicTest"),
    "early": ("file", (5.6, 1.65), "85_weights.pt, 90_weights.pt\nbefore it converged"),
    "relabel": ("script", (8.8, 1.65), "relabel_training.py\nrepairs doubtful labels"),
    "fes": ("data", (8.8, 0.5), "FER+ votes: FES"),
    "ensemble": ("script", (12.1, 4.05), "ensemble.py\nmean of logits"),
    "ck": ("script", (12.1, 2.95), "test_CK48.py\nfolds by subject"),
    "jaffe": ("script", (12.1, 1.85), "test_JAFFE.py\nas it is"),
}
# From, to.
ARROWS = (
    ("fer", "search"),
    ("fer", "train"),
    ("search", "genotype"),
    ("genotype", "train"),
    ("train", "weights"),
    ("train", "early"),
    ("early", "relabel"),
    ("fes", "relabel"),
    ("relabel", "weights"),
    ("weights", "ensemble"),
    ("weights", "ck"),
    ("weights", "jaffe"),
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.overview", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="where the picture goes; made when missing"
    )
    return parser


def draw_overview(path: Path | str) -> Figure:
    """Draw the six scripts and what passes between them. Writes a PNG and returns the figure."""
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    patches = {name: _box(axes, *box) for name, box in BOXES.items()}
    for start, end in ARROWS:
        axes.add_patch(
            FancyArrowPatch(
                BOXES[start][1],
                BOXES[end][1],
                patchA=patches[start],
                patchB=patches[end],
                arrowstyle="-|>,head_length=5,head_width=2.5",
                color=QUIET,
                linewidth=1.4,
                shrinkA=2,
                shrinkB=2,
                zorder=1,
            )
        )
    axes.text(WIDTH / 2, HEIGHT - 0.32, "From the search to the tests on other data sets",
              ha="center", fontsize=13, color=INK)  # fmt: skip
    axes.text(12.1, 1.25, "CK+48, JAFFE: sets of their own", ha="center", fontsize=9, color=QUIET)
    return save_figure(figure, path)


def _box(axes: Axes, kind: str, centre: tuple[float, float], text: str) -> FancyBboxPatch:
    """A labelled box whose first line is the larger one."""
    fill, border = KINDS[kind]
    first, _, second = text.partition("\n")
    width, height = 0.105 * max(len(first), 0.84 * len(second)) + 0.2, 0.66 if second else 0.5
    x, y = centre
    box = FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, facecolor=fill, edgecolor=border,
        boxstyle="round,pad=0,rounding_size=0.1", linewidth=1.2, zorder=2,
    )  # fmt: skip
    axes.add_patch(box)
    lift = 0.12 if second else 0.0
    axes.text(x, y + lift, first, ha="center", va="center", fontsize=10.5, color=INK, zorder=3)
    axes.text(x, y - 0.15, second, ha="center", va="center", fontsize=8.5, color=INK, zorder=3)
    return box


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Draw the picture; returns its path."""
    path = cli.make_folder("--out", args.out) / "overview.png"
    draw_overview(path)
    print(f"drawn: {path}")
    return {"overview": str(path)}


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
