"""The picture of a FES matrix, in the style of `tools.plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tools.plots import INK, OPEN, QUIET, new_figure, save_figure


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
