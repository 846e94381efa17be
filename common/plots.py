"""Plots of cells, searches and results. Each function writes a PNG and returns its Figure.

Figures are drawn by Agg without pyplot, so that no display is needed and no global state is
changed. The same arguments give the same file. Each function raises UserError if the file cannot be
written.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from common.cell_layout import Box, lay_out_cell
from genotypes import EXTRA_PRIMITIVES, PRIMITIVES
from model_search import EDGE_NAMES, EDGES
from runtime.files import atomic_write

DPI = 160
INK, QUIET, PALE = "#22272e", "#7d8590", "#e6e8eb"
# By primitive, the colour of lines and of the background of labels; related ones are similar.
COLOURS = {
    "none": ("#8b949e", "#eef0f2"),
    "max_pool_3x3": ("#b45309", "#fdebd3"),
    "avg_pool_3x3": ("#d18f1f", "#fdf3dc"),
    "skip_connect": ("#57606a", "#eaedf0"),
    "sep_conv_3x3": ("#1f6fb8", "#dcebf9"),
    "sep_conv_5x5": ("#15508a", "#d0e2f4"),
    "dil_conv_3x3": ("#7a52b3", "#ebe2f7"),
    "dil_conv_5x5": ("#5b3591", "#e1d4f2"),
    "ghost": ("#0f8a7e", "#d6f1ee"),
    "conv_1x1": ("#c2416b", "#fbe1ea"),
    "conv_3x3": ("#9b2145", "#f6d3de"),
    "sep_conv_7x7": ("#0d3760", "#c6d8ea"),
    "conv_7x1_1x7": ("#6f1230", "#efc8d5"),
}
# Of primitives that a user adds: hues that the others leave.
COLOUR_CYCLE = ("#5f8d1a", "#8c6d31", "#2e8540", "#a3a000")
SPLIT_COLOURS = {
    "train": "#8b949e",
    "valid": "#0f8a7e",
    "PublicTest": "#1f6fb8",
    "PrivateTest": "#c2416b",
}
CELL_TITLES = {"normal": "normal cell", "reduce": "reduction cell"}
# "from→to" for each edge of a searched cell, states 0 and 1 the inputs; the first of each node.
EDGE_LABELS = [name.replace(" -> ", "→") for name in EDGE_NAMES]
NODE_STARTS = [edge for edge, (_, source) in enumerate(EDGES) if source == 0]
STATES_NOTE = "edges by state: 0 and 1 are the cell's inputs, 2 to 5 its nodes"
BAR = 0.72
PRUNED: dict[str, Any] = {"facecolor": "white", "edgecolor": "#c3c9d0", "hatch": "////"}
# Fill and border.
BOXES = {
    "input": ("#c9e7c4", "#4f8a47"),
    "node": ("#bcdaf0", "#3f78a8"),
    "output": ("#f6e3a1", "#a98a25"),
}


def colours_of(primitive: str) -> tuple[str, str]:
    """The colour of a primitive's lines, and that of the background of its labels."""
    colours = COLOURS.get(primitive)
    if colours is None:
        others = [name for name in (*PRIMITIVES, *EXTRA_PRIMITIVES) if name not in COLOURS]
        line = COLOUR_CYCLE[others.index(primitive) % len(COLOUR_CYCLE)]
        red, green, blue = to_rgb(line)
        colours = line, to_hex((0.83 + 0.17 * red, 0.83 + 0.17 * green, 0.83 + 0.17 * blue))
    return colours


def draw_cell(
    cell: Sequence[tuple[str, int]], concat: Sequence[int], path: Path | str, title: str
) -> Figure:
    """Draw a cell as a directed graph from left to right.

    `cell`: (primitive, state) pairs, two per node; `concat`: the states of the output. States are
    the inputs c_{k-2} and c_{k-1} (green), then the nodes (blue); the output is yellow.
    """
    centred: dict[str, Any] = {"ha": "center", "va": "center_baseline", "color": INK}
    text = {**centred, "fontsize": 9.5, "family": "DejaVu Sans"}
    widths = [_text_width(primitive, 9.5) + 0.16 for primitive, _ in cell]
    layout = lay_out_cell([state for _, state in cell], concat, widths)
    width, height = max(layout.width, _text_width(title, 12) + 0.5), layout.height + 0.3
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    left = (layout.width - width) / 2
    axes.set(xlim=(left, left + width), ylim=(0, height))
    axes.axis("off")
    axes.set_title(title, y=1 - 0.27 / height, fontsize=12, color=INK, pad=0, parse_math=False)

    straight: dict[str, Any] = {"shrinkA": 0, "shrinkB": 0, "joinstyle": "miter"}
    arrow = "-|>,head_length=4.5,head_width=2.2"
    for number, runs in enumerate(layout.wires):
        labelled = number < len(cell)
        colour = colours_of(cell[number][0])[0] if labelled else BOXES["output"][1]
        axes.add_patch(
            FancyArrowPatch(path=_wire(runs), arrowstyle=arrow, color=colour, capstyle="butt",
                            linewidth=1.3 if labelled else 1.0, zorder=1, **straight)
        )  # fmt: skip
    for (primitive, _), box in zip(cell, layout.labels, strict=True):
        line, tint = colours_of(primitive)
        _rounded(axes, box, tint, line, 0.09)
        axes.text(box.x, box.y, primitive, **text)
    names = ["$c_{k-2}$", "$c_{k-1}$", *range(2, len(layout.nodes) - 1), "$c_{k}$"]
    for place, (name, box) in enumerate(zip(names, layout.nodes, strict=True)):
        role = "input" if place < 2 else "output" if place == len(names) - 1 else "node"
        _rounded(axes, box, *BOXES[role], 0.06)
        axes.text(box.x, box.y, str(name), **centred, fontsize=12)
    return save_figure(figure, path)


def draw_decisions(decisions: Sequence[dict[str, Any]], epochs: int, path: Path | str) -> Figure:
    """Draw in which of `epochs` epochs each edge was decided or pruned.

    Each decision: {"epoch": int, "cell": "normal" or "reduce", "edge": 0 .. 13, "primitive": name,
    "pruned": edges pruned by it}. Edges are numbered node by node.
    """
    figure = new_figure(11.5, 4.75)
    for panel, (cell, title) in enumerate(CELL_TITLES.items()):
        axes = figure.add_axes((0.055 + 0.485 * panel, 0.135, 0.445, 0.765))
        axes.set(xlim=(0, epochs), ylim=(len(EDGES) - 0.5, -0.5), xlabel="epoch")
        axes.barh(EDGE_LABELS, epochs, height=BAR, color=PALE, zorder=1)
        for decision in decisions:
            if decision["cell"] == cell:
                _draw_decision(axes, decision, epochs)
        for first in NODE_STARTS[1:]:
            axes.axhline(first - 0.5, color=QUIET, linewidth=0.6)
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.grid(axis="x", color="white", linewidth=0.8, zorder=1.5)
        axes.set_axisbelow("line")
        axes.xaxis.set_major_locator(whole_epochs())
        quiet(axes)
    decided = {"facecolor": "#dcebf9", "edgecolor": "#1f6fb8"}
    kinds = {"open": {"facecolor": PALE}, "decided": decided, "pruned": PRUNED}
    patches = [Patch(**look, label=kind) for kind, look in kinds.items()]
    place: dict[str, Any] = {"loc": "upper right", "bbox_to_anchor": (0.99, 1.0), "ncols": 3}
    figure.legend(handles=patches, frameon=False, fontsize=9, **place)
    figure.text(0.055, 0.025, STATES_NOTE, fontsize=8.5, color=QUIET)
    return save_figure(figure, path)


def _draw_decision(axes: Axes, decision: dict[str, Any], epochs: int) -> None:
    epoch, edge, primitive = (decision[name] for name in ("epoch", "edge", "primitive"))
    line, tint = colours_of(primitive)
    options: dict[str, Any] = {"left": epoch, "height": BAR, "zorder": 2}
    axes.barh(edge, epochs - epoch, color=tint, edgecolor=line, linewidth=1.1, **options)
    axes.barh(decision["pruned"], epochs - epoch, **PRUNED, linewidth=0.8, **options)
    # The bar of a late decision is too short for the name, which is then left of it.
    panel = axes.get_window_extent().width / DPI
    inside = _text_width(primitive, 8.5) + 0.12 < panel * (epochs - epoch) / epochs
    axes.annotate(primitive, (epoch, edge), xytext=(4 if inside else -4, 0),
                  textcoords="offset points", ha="left" if inside else "right",
                  va="center_baseline", fontsize=8.5, color=INK, zorder=3)  # fmt: skip


def draw_confusion(
    matrix: np.ndarray, classes: Sequence[str], path: Path | str, title: str
) -> Figure:
    """Draw a confusion matrix: counts int [classes, classes], rows true, columns predicted.

    Colours and percentages are relative to the row; beside it is the recall of the class. Classes
    without images show dashes. Above 20 classes cells have no numbers, above 60 rows no names.
    """
    matrix = np.asarray(matrix)
    counts = matrix.sum(axis=1)
    shares = matrix / np.maximum(counts, 1)[:, None]
    size = len(classes)
    numbered, named = range(size if size <= 20 else 0), range(size if size <= 60 else 0)
    across, down = (0.78, 0.62) if numbered else (12 / max(size, 60),) * 2
    width, height = 2.45 + across * size, 1.65 + down * size
    figure = new_figure(width, height)
    box = (1.45 / width, 0.85 / height, across * size / width, down * size / height)
    axes = figure.add_axes(box)
    names = [f"{classes[row]} ({counts[row]:,})" for row in named]
    heat_map(axes, shares, names, classes[: len(named)], peak=1.0, lines=True)
    axes.tick_params(axis="x", labelrotation=30 if numbered else 90)
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in product(numbered, numbered):
        percent = f"{100 * shares[row, column]:.1f} %" if counts[row] else "–"
        style: dict[str, Any] = {
            "ha": "center",
            "color": "white" if shares[row, column] > 0.55 else INK,
        }
        style["fontweight"] = "bold" if row == column else "normal"
        count = f"{matrix[row, column]:,}"
        axes.text(column, row - 0.04, count, va="bottom", fontsize=10, **style)
        axes.text(column, row + 0.04, percent, va="top", fontsize=7.5, **style)
    for row in named:
        recall = f"{100 * shares[row, row]:.1f} %" if counts[row] else "–"
        axes.text(size - 0.38, row, recall, va="center", fontsize=10, fontweight="bold", color=INK)
    axes.text(size - 0.38, -0.62, "recall" if named else "", va="bottom", fontsize=9, color=QUIET)
    correct = 100 * np.trace(matrix) / max(matrix.sum(), 1)
    summary = f"{correct:.2f} % of {matrix.sum():,} images correct"
    axes.text(-0.5, -0.62, summary, va="bottom", fontsize=9, color=QUIET)
    figure.text(0.5, 1 - 0.3 / height, title, ha="center", fontsize=12, color=INK, parse_math=False)
    return save_figure(figure, path)


def draw_reliability(bins: pd.DataFrame, error: float, path: Path | str, title: str) -> Figure:
    """Draw accuracy against confidence, in percent, of `calibration_bins`; `error` is their ECE.

    Below, the share of the images in each bin.
    """
    figure = new_figure(4.6, 5.4)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    side = 100 / len(bins)
    places = side * (np.arange(len(bins)) + 0.5)
    upper.bar(places, bins["accuracy"], 0.9 * side, color="#9ec5e8")
    upper.plot([0, 100], [0, 100], color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    upper.plot(bins["confidence"], bins["accuracy"], "o", markersize=4, color=INK)
    upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy (%)")
    upper.set_title(f"{title}: ECE {error:.2f} %", fontsize=11, color=INK, parse_math=False)
    lower.bar(places, 100 * bins["images"] / bins["images"].sum(), 0.9 * side, color="#c3c9d0")
    lower.set(xlabel="probability of the top class (%)", ylabel="images (%)")
    for axes in (upper, lower):
        axes.grid(color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        quiet(axes)
    figure.tight_layout(h_pad=1)
    return save_figure(figure, path)


def draw_curves(history: Sequence[dict[str, Any]], path: Path | str) -> Figure:
    """Draw loss, accuracy (percent) and learning rate against the epoch.

    A dict per epoch with `epoch` and any of `lr` and `SPLIT_loss`, `SPLIT_accuracy` for the splits
    train, valid, PublicTest and PrivateTest. The (first) epoch of the best PublicTest accuracy is
    marked.
    """
    names = [f"{split}_{quantity}" for split in SPLIT_COLOURS for quantity in ("loss", "accuracy")]
    table = pd.DataFrame(history).set_index("epoch").reindex(columns=["lr", *names]).astype(float)
    epochs, chosen = table.index, table["PublicTest_accuracy"]
    figure = new_figure(12.5, 4.3)
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.72))
    style: dict[str, Any] = {"linewidth": 1.3, "marker": "o" if len(history) == 1 else None}
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for split, colour in SPLIT_COLOURS.items():
            values = table[f"{split}_{quantity}"]
            if values.notna().any():
                axes.plot(epochs, values, color=colour, label=split, **style)
    rate.plot(epochs, table["lr"], color=INK, **style)
    rate.set_ylim(0, 1.05 * (np.nanmax([*table["lr"], 0.0]) or 1.0))
    if chosen.notna().any():
        place = int(np.nanargmax(chosen))
        best, value = epochs[place], chosen.iloc[place]
        for axes in (loss, accuracy):
            axes.axvline(best, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        accuracy.plot(
            best, value, "o", markersize=8, markerfacecolor="white",
            markeredgecolor=SPLIT_COLOURS["PublicTest"], markeredgewidth=2, zorder=5,
            label=f"chosen epoch {best}: PublicTest {value:.2f} %",
        )  # fmt: skip
    margin = max(0.5, 0.03 * (epochs[-1] - epochs[0]))
    for axes, title in ((loss, "loss"), (accuracy, "accuracy (%)"), (rate, "learning rate")):
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.set_xlabel("epoch")
        axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
        axes.xaxis.set_major_locator(whole_epochs())
        axes.grid(color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:  # below, where it covers no curve
            axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper center",
                        bbox_to_anchor=(0.5, -0.15))  # fmt: skip
        quiet(axes)
    figure.tight_layout(w_pad=2)
    return save_figure(figure, path)


def draw_alphas(
    strengths: np.ndarray, path: Path | str, title: str, states: Sequence[int] = ()
) -> Figure:
    """Draw softmax(alpha) of a cell, float [14 edges, primitives] in [0, 1], as a heat map.

    `states`: 14 ints, -1 an open edge, 0 pruned (hatched), k decided for primitive k (framed).
    """
    strengths = np.asarray(strengths)
    figure = new_figure(8.8, 5.9)
    axes = figure.add_axes((0.07, 0.185, 0.915, 0.745))
    peak = max(float(strengths.max()), 0.3)
    heat_map(axes, strengths, EDGE_LABELS, PRIMITIVES, peak, form="{:.2f}", fontsize=8)
    for edge, state in enumerate(states):
        if state == 0:
            whole = {**PRUNED, "facecolor": "#ffffffb0"}
            axes.add_patch(Rectangle((-0.5, edge - 0.5), len(PRIMITIVES), 1, linewidth=0, **whole))
        elif state > 0:
            look: dict[str, Any] = {"edgecolor": colours_of(PRIMITIVES[state])[0], "fill": False}
            corner = (state - 0.48, edge - 0.47)
            axes.add_patch(Rectangle(corner, 0.96, 0.94, linewidth=2.4, **look))
    for first in NODE_STARTS[1:]:
        axes.axhline(first - 0.5, color=QUIET, linewidth=0.8)
    axes.set_title(title, fontsize=12, color=INK, pad=9, parse_math=False)
    figure.text(0.07, 0.025, STATES_NOTE, fontsize=8.5, color=QUIET)
    return save_figure(figure, path)


def heat_map(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    peak: float,
    *,
    form: str | None = None,
    fontsize: float = 9.5,
    lines: bool = False,
) -> None:
    """Draw `values` (rows, columns), from 0 (white) to `peak`; masked ones stay in the background.

    With `form`, a format string, the values are written into the cells. `lines` separates cells.
    """
    axes.imshow(values, cmap="Blues", vmin=0, vmax=peak, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # in a name $ does not begin a formula
    if form is not None:
        for row, column in np.ndindex(*values.shape):
            value = values[row, column]
            if value is not np.ma.masked:
                colour = "white" if value > 0.6 * peak else INK
                axes.text(column, row, form.format(value), ha="center", va="center_baseline",
                          fontsize=fontsize, color=colour)  # fmt: skip
    if lines:
        axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2)
    quiet(axes)


def whole_epochs() -> MaxNLocator:
    """A few ticks at whole numbers, for an axis of epochs."""
    return MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def quiet(axes: Axes) -> None:
    """Remove the frame and the tick marks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.label.set(color=QUIET, fontsize=9.5)
    axes.yaxis.label.set(color=QUIET, fontsize=9.5)


def _wire(runs: Sequence[tuple[float, float, float]]) -> Curve:
    """Horizontal runs (x, x', y) joined by S-shaped curves."""
    vertices, codes = [(runs[0][1], runs[0][2])], [Curve.MOVETO]
    for (_, x, y), (left, right, next_y) in pairwise(runs):
        middle = (x + left) / 2
        vertices += [(middle, y), (middle, next_y), (left, next_y)]
        codes += [Curve.CURVE4] * 3
        if right > left:
            vertices.append((right, next_y))
            codes.append(Curve.LINETO)
    return Curve(vertices, codes)


def _rounded(axes: Axes, box: Box, fill: str, line: str, radius: float) -> None:
    corner = (box.x - box.width / 2, box.y - box.height / 2)
    style = f"round,pad=0,rounding_size={radius}"
    look: dict[str, Any] = {"facecolor": fill, "edgecolor": line, "linewidth": 1.1}
    axes.add_patch(FancyBboxPatch(corner, box.width, box.height, style, **look))


def _text_width(text: str, size: float) -> float:
    """Width of `text` in inches, in DejaVu Sans of `size` points."""
    font = FontProperties(family="DejaVu Sans", size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72.0


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path | str) -> Figure:
    """Write the figure as a PNG, atomically, and return it; UserError as `atomic_write`."""
    # Without the version of matplotlib, equal figures are equal files.
    metadata = {"Software": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are long, or of letters that no font has
        atomic_write(path, lambda file: figure.savefig(file, format="png", metadata=metadata))
    return figure
