"""The pictures of relabelling, in the style of `common.plots`: FES, and a sweep of thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.plots import INK, OPEN, QUIET, SPLITS, new_figure, save_figure


def draw_fes(matrix: np.ndarray, classes: Sequence[str], path: Path | str, title: str) -> Figure:
    """Draw a symmetric matrix of similarities, float (K, K) in [0, 1], as a labelled heat map.

    The diagonal, 1 by definition, stands in gray outside the scale, so that colour tells the pairs
    apart. Writes a PNG and returns the figure; UserError when `path` cannot be written.
    """
    size = len(classes)
    pairs = np.ma.masked_where(np.eye(size, dtype=bool), matrix)
    peak = float(pairs.max()) or 1.0
    width, height = 1.35 + 0.78 * size, 1.25 + 0.56 * size
    figure = new_figure(width, height)
    axes = figure.add_axes((1.0 / width, 0.7 / height, 0.78 * size / width, 0.56 * size / height))
    axes.set_facecolor(OPEN)
    axes.imshow(pairs, cmap="Blues", vmin=0, vmax=peak, aspect="auto")
    for row, column in np.ndindex(size, size):
        value = matrix[row, column]
        colour = QUIET if row == column else "white" if value > 0.6 * peak else INK
        text = f"{value:g}" if row == column else f"{value:.4f}"
        axes.text(column, row, text, ha="center", va="center_baseline", fontsize=9.5, color=colour)
    axes.set_xticks(range(size), classes, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), classes)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=9.5, labelcolor=INK)
    figure.text(
        0.5, 1 - 0.36 / height, title, ha="center", fontsize=12, color=INK, parse_math=False
    )
    return save_figure(figure, path)


def draw_sweep(rows: Sequence[dict[str, Any]], path: Path | str) -> Figure:
    """Draw top-1 accuracy against --relabel_threshold, a line for each --fes_threshold.

    `rows`: dicts with relabel_threshold, fes_threshold, PublicTest and PrivateTest (percent). One
    panel a split. Writes a PNG and returns the figure; UserError when `path` cannot be written.
    """
    figure = new_figure(10.5, 4.2)
    gates = sorted({row["fes_threshold"] for row in rows})
    for place, split in enumerate(("PublicTest", "PrivateTest")):
        axes = figure.add_axes((0.07 + 0.48 * place, 0.14, 0.42, 0.7))
        for number, gate in enumerate(gates):
            line = sorted((r["relabel_threshold"], r[split]) for r in rows
                          if r["fes_threshold"] == gate)  # fmt: skip
            strength = 0.35 + 0.65 * (number + 1) / len(gates)
            axes.plot(*zip(*line, strict=True), "o-", color=SPLITS[split], alpha=strength,
                      linewidth=1.6, markersize=4.5, label=f"{gate:g}")  # fmt: skip
        axes.set_title(split, fontsize=11, color=INK)
        axes.set_xlabel("--relabel_threshold", fontsize=9.5, color=INK)
        axes.set_ylabel("top-1 accuracy in %" if place == 0 else "", fontsize=9.5, color=INK)
        axes.tick_params(labelsize=9, labelcolor=INK, color=QUIET)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(title="--fes_threshold", fontsize=8.5, title_fontsize=8.5, frameon=False)
    figure.text(0.5, 0.94, "Weights chosen on PublicTest, over the thresholds of relabelling",
                ha="center", fontsize=12, color=INK)  # fmt: skip
    return save_figure(figure, path)
