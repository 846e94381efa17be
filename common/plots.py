"""Pictures of cells, searches and results: each function writes one PNG and returns its Figure.

Figures are built as objects and drawn by Agg: no display is needed, and nothing that another
plotting program holds is touched. The same arguments give the same file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from common.cell_layout import Box, lay_out_cell
from genotypes import PRIMITIVES
from utils import UserError, atomic_write

DPI = 160
INK, QUIET, OPEN = "#22272e", "#7d8590", "#e6e8eb"
# Related primitives share a hue: a strong one for lines and bars, a tint of it behind text.
COLOURS = {
    "none": ("#8b949e", "#eef0f2"),
    "max_pool_3x3": ("#b45309", "#fdebd3"),
    "avg_pool_3x3": ("#d18f1f", "#fdf3dc"),
    "skip_connect": ("#57606a", "#eaedf0"),
    "sep_conv_3x3": ("#1f6fb8", "#dcebf9"),
    "sep_conv_5x5": ("#15508a", "#d0e2f4"),
    "sep_conv_7x7": ("#0d3760", "#c6d8ea"),
    "dil_conv_3x3": ("#7a52b3", "#ebe2f7"),
    "dil_conv_5x5": ("#5b3591", "#e1d4f2"),
    "ghost": ("#0f8a7e", "#d6f1ee"),
    "conv_1x1": ("#c2416b", "#fbe1ea"),
    "conv_3x3": ("#9b2145", "#f6d3de"),
    "conv_7x1_1x7": ("#6f1230", "#efc8d5"),
}
SPLITS = {
    "train": "#8b949e",
    "valid": "#0f8a7e",
    "PublicTest": "#1f6fb8",
    "PrivateTest": "#c2416b",
}
CELLS = {"normal": "normal cell", "reduce": "reduction cell"}
EDGES, NODE_STARTS = 14, (0, 2, 5, 9)  # of a searched cell: its edges, the first of each node
STATES_NOTE = "edges by state: 0 and 1 are the cell's inputs, 2 to 5 its nodes 0 to 3"
BAR = 0.72
PRUNED = {"facecolor": "white", "edgecolor": "#c3c9d0", "hatch": "////"}
# Input, node, output: fill and border.
BOXES = {
    "input": ("#c9e7c4", "#4f8a47"),
    "node": ("#bcdaf0", "#3f78a8"),
    "output": ("#f6e3a1", "#a98a25"),
}


def draw_cell(
    cell: Sequence[tuple[str, int]], concat: Sequence[int], path: Path | str, title: str
) -> Figure:
    """Draw a cell as a directed graph from left to right.

    `cell`: (primitive, state) pairs, two a node; `concat`: the states that make up the output.
    States are the inputs c_{k-2} and c_{k-1} (green), then the nodes (blue); the output is yellow.
    """
    text = {"fontsize": 9.5, "family": "DejaVu Sans"}
    widths = [_text_width(primitive, 9.5) + 0.16 for primitive, _ in cell]
    layout = lay_out_cell([state for _, state in cell], concat, widths)
    width, height = max(layout.width, _text_width(title, 12) + 0.5), layout.height + 0.3
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    left = (layout.width - width) / 2
    axes.set(xlim=(left, left + width), ylim=(0, height))
    axes.axis("off")
    axes.set_title(title, y=1 - 0.27 / height, fontsize=12, color=INK, pad=0, parse_math=False)

    for number, runs in enumerate(layout.wires):
        colour = COLOURS[cell[number][0]][0] if number < len(cell) else "#a98a25"
        axes.add_patch(
            FancyArrowPatch(
                path=_wire(runs),
                arrowstyle="-|>,head_length=4.5,head_width=2.2",
                color=colour,
                linewidth=1.3 if number < len(cell) else 1.0,
                shrinkA=0,
                shrinkB=0,
                joinstyle="miter",
                capstyle="butt",
                zorder=1,
            )
        )
    for (primitive, _), box in zip(cell, layout.labels, strict=True):
        line, tint = COLOURS[primitive]
        _rounded(axes, box, tint, line, 0.09)
        axes.text(box.x, box.y, primitive, ha="center", va="center_baseline", color=INK, **text)
    names = ["$c_{k-2}$", "$c_{k-1}$", *range(len(layout.nodes) - 3), "$c_{k}$"]
    for place, (name, box) in enumerate(zip(names, layout.nodes, strict=True)):
        role = "input" if place < 2 else "output" if place == len(names) - 1 else "node"
        _rounded(axes, box, *BOXES[role], 0.06)
        axes.text(box.x, box.y, name, ha="center", va="center_baseline", color=INK, fontsize=12)
    return save_figure(figure, path)


def draw_decisions(decisions: Sequence[dict[str, Any]], epochs: int, path: Path | str) -> Figure:
    """Draw which edge of each cell was decided or pruned when, of `epochs` epochs.

    Each decision: {"epoch": int, "cell": "normal" or "reduce", "edge": 0 .. 13, "primitive": its
    name, "pruned": the edges that this decision pruned}. Edges are numbered node by node.
    """
    figure = new_figure(11.5, 4.75)
    for panel, (cell, title) in enumerate(CELLS.items()):
        axes = figure.add_axes((0.055 + 0.485 * panel, 0.135, 0.445, 0.765))
        axes.set(xlim=(0, epochs), ylim=(EDGES - 0.5, -0.5), xlabel="epoch")
        axes.barh(range(EDGES), epochs, height=BAR, color=OPEN, zorder=1)
        for decision in decisions:
            if decision["cell"] == cell:
                _draw_decision(axes, decision, epochs)
        for first in NODE_STARTS[1:]:
            axes.axhline(first - 0.5, color=QUIET, linewidth=0.6)
        axes.set_yticks(range(EDGES), edge_names())
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.grid(axis="x", color="white", linewidth=0.8, zorder=1.5)
        axes.set_axisbelow("line")
        axes.xaxis.set_major_locator(whole_epochs())
        quiet(axes)
    figure.legend(
        handles=[
            Patch(facecolor=OPEN, label="open"),
            Patch(facecolor="#dcebf9", edgecolor="#1f6fb8", label="decided"),
            Patch(**PRUNED, label="pruned"),
        ],
        loc="upper right",
        bbox_to_anchor=(0.99, 1.0),
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    figure.text(0.055, 0.025, STATES_NOTE, fontsize=8.5, color=QUIET)
    return save_figure(figure, path)


def _draw_decision(axes: Axes, decision: dict[str, Any], epochs: int) -> None:
    epoch, edge, primitive = decision["epoch"], decision["edge"], decision["primitive"]
    line, tint = COLOURS[primitive]
    options = {"left": epoch, "height": BAR, "zorder": 2}
    axes.barh(edge, epochs - epoch, color=tint, edgecolor=line, linewidth=1.1, **options)
    axes.barh(decision["pruned"], epochs - epoch, **PRUNED, linewidth=0.8, **options)
    # Late decisions leave bars too short for a name, which then stands before the bar.
    panel = axes.get_position().width * axes.figure.get_figwidth()
    inside = _text_width(primitive, 8.5) + 0.12 < panel * (epochs - epoch) / epochs
    axes.annotate(
        primitive,
        (epoch, edge),
        xytext=(4 if inside else -4, 0),
        textcoords="offset points",
        ha="left" if inside else "right",
        va="center_baseline",
        fontsize=8.5,
        color=INK,
        zorder=3,
    )


def draw_confusion(
    matrix: np.ndarray, classes: Sequence[str], path: Path | str, title: str
) -> Figure:
    """Draw a confusion matrix: counts int [classes, classes], rows true, columns predicted.

    Colours and percentages are shares of a row; the recall of each class stands beside its row. A
    class without images shows dashes.
    """
    matrix = np.asarray(matrix)
    counts = matrix.sum(axis=1)
    shares = matrix / np.maximum(counts, 1)[:, None]
    size = len(classes)
    width, height = 2.45 + 0.78 * size, 1.65 + 0.62 * size
    figure = new_figure(width, height)
    axes = figure.add_axes((1.45 / width, 0.85 / height, 0.78 * size / width, 0.62 * size / height))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(size, size):
        percent = f"{100 * shares[row, column]:.1f} %" if counts[row] else "–"
        colour = "white" if shares[row, column] > 0.55 else INK
        weight = "bold" if row == column else "normal"
        options = {"ha": "center", "color": colour, "fontweight": weight}
        axes.text(
            column, row - 0.04, f"{matrix[row, column]:,}", va="bottom", fontsize=10, **options
        )
        axes.text(column, row + 0.04, percent, va="top", fontsize=7.5, **options)
    for row, count in enumerate(counts):
        recall = f"{100 * shares[row, row]:.1f} %" if count else "–"
        axes.text(size - 0.38, row, recall, va="center", fontsize=10, fontweight="bold", color=INK)
    axes.text(size - 0.38, -0.62, "recall", va="bottom", fontsize=9, color=QUIET)
    correct = 100 * np.trace(matrix) / max(matrix.sum(), 1)
    summary = f"{correct:.2f} % of {matrix.sum():,} images right"
    axes.text(-0.5, -0.62, summary, va="bottom", fontsize=9, color=QUIET)
    figure.text(0.5, 1 - 0.3 / height, title, ha="center", fontsize=12, color=INK, parse_math=False)
    axes.set_xticks(range(size), classes, rotation=30, ha="right", rotation_mode="anchor")
    names = [f"{name} ({count:,})" for name, count in zip(classes, counts, strict=True)]
    axes.set_yticks(range(size), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    quiet(axes)
    return save_figure(figure, path)


def draw_curves(history: Sequence[dict[str, Any]], path: Path | str) -> Figure:
    """Draw loss, accuracy (percent) and learning rate against the epoch.

    A dict an epoch with `epoch` and any of `lr` and `SPLIT_loss`, `SPLIT_accuracy` for the splits
    train, valid, PublicTest and PrivateTest. The epoch of the best PublicTest accuracy, the first
    of equals, is marked. Raises UserError without epochs.
    """
    if not history:
        raise UserError(f"{path}: no epochs found, expected at least one to draw curves of")
    epochs = [record["epoch"] for record in history]

    def series(key: str) -> np.ndarray:
        values = [record.get(key) for record in history]
        return np.array([math.nan if value is None else float(value) for value in values])

    figure = new_figure(12.5, 4.3)
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.72))
    style = {"linewidth": 1.3, "marker": "o" if len(history) == 1 else None}
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for split, colour in SPLITS.items():
            values = series(f"{split}_{quantity}")
            if not np.isnan(values).all():
                axes.plot(epochs, values, color=colour, label=split, **style)
    rates = series("lr")
    rate.plot(epochs, rates, color=INK, **style)
    rate.set_ylim(0, 1.05 * (np.nanmax([*rates, 0.0]) or 1.0))
    chosen = series("PublicTest_accuracy")
    if not np.isnan(chosen).all():
        best = int(np.nanargmax(chosen))
        label = f"chosen epoch {epochs[best]}: PublicTest {chosen[best]:.2f} %"
        for axes in (loss, accuracy):
            axes.axvline(epochs[best], color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        accuracy.plot(
            epochs[best], chosen[best], "o", markersize=8, markerfacecolor="white",
            markeredgecolor=SPLITS["PublicTest"], markeredgewidth=2, label=label, zorder=5,
        )  # fmt: skip
    margin = max(0.5, 0.03 * (epochs[-1] - epochs[0]))
    for axes, title in ((loss, "loss"), (accuracy, "accuracy (%)"), (rate, "learning rate")):
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.set_xlabel("epoch")
        axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
        axes.xaxis.set_major_locator(whole_epochs())
        axes.grid(color=OPEN, linewidth=0.8)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            # Below, where no curve can lie.
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "ncols": 2}
            axes.legend(frameon=False, fontsize=8.5, **below)
        quiet(axes)
    figure.tight_layout(w_pad=2)
    return save_figure(figure, path)


def draw_alphas(
    strengths: np.ndarray, path: Path | str, title: str, states: Sequence[int] | None = None
) -> Figure:
    """Draw softmax(alpha) of a cell, float [14 edges, 11 primitives] in [0, 1], as a heat map.

    `states`: 14 ints, -1 an open edge, 0 pruned (hatched), k decided for primitive k (framed).
    """
    strengths = np.asarray(strengths)
    figure = new_figure(8.8, 5.9)
    axes = figure.add_axes((0.07, 0.185, 0.915, 0.745))
    peak = max(float(strengths.max()), 0.3)
    axes.imshow(strengths, cmap="Blues", vmin=0, vmax=peak, aspect="auto")
    for edge, primitive in np.ndindex(*strengths.shape):
        value = strengths[edge, primitive]
        colour = "white" if value > 0.6 * peak else INK
        axes.text(
            primitive, edge, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour
        )
    for edge, state in enumerate(states if states is not None else []):
        if state == 0:
            axes.add_patch(
                Rectangle((-0.5, edge - 0.5), len(PRIMITIVES), 1, facecolor="#ffffffb0",
                          edgecolor="#c3c9d0", hatch="////", linewidth=0)
            )  # fmt: skip
        elif state > 0:
            line = COLOURS[PRIMITIVES[state]][0]
            axes.add_patch(
                Rectangle((state - 0.48, edge - 0.47), 0.96, 0.94, fill=False, edgecolor=line,
                          linewidth=2.4)
            )  # fmt: skip
    for first in NODE_STARTS[1:]:
        axes.axhline(first - 0.5, color=QUIET, linewidth=0.8)
    axes.set_xticks(
        range(len(PRIMITIVES)), PRIMITIVES, rotation=35, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(EDGES), edge_names())
    axes.set_title(title, fontsize=12, color=INK, pad=9, parse_math=False)
    figure.text(0.07, 0.025, STATES_NOTE, fontsize=8.5, color=QUIET)
    quiet(axes)
    return save_figure(figure, path)


def edge_names() -> list[str]:
    """The 14 edges of a searched cell as "from→to", states 0 and 1 the inputs, 2 .. 5 the nodes."""
    return [f"{state}→{node + 2}" for node in range(4) for state in range(node + 2)]


def whole_epochs() -> MaxNLocator:
    """Ticks of an axis of epochs: a few, at whole numbers."""
    return MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def quiet(axes: Axes) -> None:
    """Leave of an axes' frame the numbers and their titles alone."""
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.label.set(color=QUIET, fontsize=9.5)
    axes.yaxis.label.set(color=QUIET, fontsize=9.5)


def _wire(runs: Sequence[tuple[float, float, float]]) -> Curve:
    """Level runs joined by S-curves that leave and arrive level."""
    vertices, codes = [(runs[0][1], runs[0][2])], [Curve.MOVETO]
    for (_, x, y), (next_x, next_end, next_y) in pairwise(runs):
        middle = (x + next_x) / 2
        vertices += [(middle, y), (middle, next_y), (next_x, next_y)]
        codes += [Curve.CURVE4] * 3
        if next_end > next_x:
            vertices.append((next_end, next_y))
            codes.append(Curve.LINETO)
    return Curve(vertices, codes)


def _rounded(axes: Axes, box: Box, fill: str, line: str, radius: float) -> None:
    corner = (box.x - box.width / 2, box.y - box.height / 2)
    style = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(
        FancyBboxPatch(
            corner, box.width, box.height, style, facecolor=fill, edgecolor=line, linewidth=1.1
        )
    )


def _text_width(text: str, size: float) -> float:
    """Inches that `text` takes in DejaVu Sans of `size` points."""
    font = FontProperties(family="DejaVu Sans", size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72.0


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, drawn by Agg."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path | str) -> Figure:
    """Write the figure as a PNG, atomically, and return it; UserError as `atomic_write`."""
    # Without the version of the program the file depends on the picture alone.
    metadata = {"Software": None}
    atomic_write(path, lambda file: figure.savefig(file, format="png", metadata=metadata))
    return figure
