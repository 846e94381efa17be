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

from tools import cli
from tools.plots import INK, QUIET, new_figure, save_figure

WIDTH, HEIGHT = 13.4, 4.5
# What a box is: fill and border.
KINDS = {
    "data": ("#f6e3a1", "#a98a25"),
    "script": ("#bcdaf0", "#3f78a8"),
    "file": ("#eef0f2", "#8b949e"),
}
# Name: kind, centre, text; places in inches.
BOXES = {
    "fer": ("data", (1.0, 2.25), "FER2013"),
    "search": ("script", (3.0, 3.55), "search.py\nSGAS on a supernet"),
    "genotype": ("file", (5.6, 3.55), "genotype.txt\nnormal + reduction cell"),
    "train": ("script", (5.6, 2.25), "train_FER2013.py\nfrom scratch"),
    "weights": ("file", (8.6, 2.25), "best_val_weights.pt\nchosen on PublicTest"),
    "fes": ("data", (5.6, 0.85), "FER+ votes: FES"),
    "relabel": ("script", (8.6, 0.85), "relabel_training.py\nrepairs doubtful labels"),
    "ensemble": ("script", (12.1, 3.35), "ensemble.py\nmean of logits"),
    "ck": ("script", (12.1, 2.25), "test_CK48.py\nfolds by subject"),
    "jaffe": ("script", (12.1, 1.15), "test_JAFFE.py\nas it is"),
}
# From, to, bend of the arrow.
ARROWS = (
    ("fer", "search", 0.0),
    ("fer", "train", 0.0),
    ("search", "genotype", 0.0),
    ("genotype", "train", 0.0),
    ("train", "weights", 0.0),
    ("weights", "relabel", 0.25),
    ("relabel", "weights", 0.25),
    ("fes", "relabel", 0.0),
    ("weights", "ensemble", 0.0),
    ("weights", "ck", 0.0),
    ("weights", "jaffe", 0.0),
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
    for start, end, bend in ARROWS:
        axes.add_patch(
            FancyArrowPatch(
                BOXES[start][1],
                BOXES[end][1],
                patchA=patches[start],
                patchB=patches[end],
                connectionstyle=f"arc3,rad={bend}",
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
    axes.text(12.1, 0.55, "CK+48, JAFFE: sets of their own", ha="center", fontsize=9, color=QUIET)
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
