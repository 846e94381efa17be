"""The contact sheet of predictions: each face beside the bars of its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.plots import INK, QUIET, new_figure, save_figure

COLUMNS = 3
MOST = 60  # faces on a sheet: more cannot be looked at
CELL, FACE, HEAD, NAMES = (3.9, 1.75), 1.3, 0.5, 0.62  # inches
BAR, BEST = "#9db8d3", "#1f6fb8"


def draw_faces(
    images: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    path: Path | str,
) -> Figure:
    """Draw the first `MOST` of uint8 (N, 48, 48) as the network saw them, with their bars.

    `probabilities` are float (N, K) with rows that sum to one, for the K `classes`; the most
    likely class is named above its bars and stands out among them.
    """
    shown = min(len(images), MOST)
    columns = min(shown, COLUMNS)
    rows = -(-shown // columns)
    width, height = columns * CELL[0] + 0.2, rows * CELL[1] + HEAD
    figure = new_figure(width, height)
    title = f"{shown} faces as the network sees them" if shown > 1 else "as the network sees it"
    if shown < len(images):
        title = f"the first {shown} of {len(images)} faces as the network sees them"
    figure.text(0.15 / width, 1 - 0.3 / height, title, fontsize=11, color=INK)
    for k in range(shown):
        left = 0.15 + (k % columns) * CELL[0]
        bottom = height - HEAD - (k // columns + 1) * CELL[1] + 0.15
        face = figure.add_axes((left / width, bottom / height, FACE / width, FACE / height))
        face.imshow(images[k], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        face.set_axis_off()
        face.set_title(_short(names[k]), fontsize=7.5, color=QUIET, pad=3, loc="left",
                       parse_math=False)  # fmt: skip
        start = left + FACE + NAMES + 0.12
        length = CELL[0] - (start - left) - 0.55
        bars = figure.add_axes((start / width, bottom / height, length / width, FACE / height))
        best = int(probabilities[k].argmax())
        places = np.arange(len(classes))
        colours = [BEST if place == best else BAR for place in places]
        bars.barh(places, probabilities[k], color=colours, height=0.72)
        for place, share in enumerate(probabilities[k]):
            weight = "bold" if place == best else "normal"
            bars.text(share + 0.03, place, f"{100 * share:.0f} %", va="center", fontsize=7,
                      color=INK, fontweight=weight)  # fmt: skip
        bars.set_title(classes[best], fontsize=9, color=BEST, fontweight="bold", pad=2, loc="left")
        bars.set_yticks(places, classes, fontsize=7.5)
        bars.set(xlim=(0, 1), ylim=(len(classes) - 0.5, -0.5))
        bars.set_xticks([])
        bars.tick_params(length=0, labelcolor=INK)
        for spine in ("top", "right", "bottom"):
            bars.spines[spine].set_visible(False)
        bars.spines["left"].set_color(QUIET)
    return save_figure(figure, path)


def _short(name: str, most: int = 22) -> str:
    """The name, its middle left out where it is longer than fits above a face."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
