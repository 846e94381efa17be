"""The picture of `tools.compare`, in the style of `common.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from common.plots import INK, OPEN, QUIET, SPLITS, new_figure, quiet, save_figure, whole_epochs


def draw_comparison(
    curves: Mapping[str, Sequence[float]],
    figures: Mapping[str, Mapping[str, Mapping[str, Any]]],
    path: Path | str,
) -> Figure:
    """Draw the curve of each arm, and its differences to the first with their 95 % intervals.

    `curves`: PublicTest accuracy (percent) after each epoch, by arm, what is compared with first;
    `figures`: by arm and split, as `tools.compare` has them. Writes a PNG and returns the figure;
    UserError when `path` cannot be written.
    """
    names = list(curves)
    height = max(4.2, 1.5 + 0.4 * len(names))
    figure = new_figure(12.0, height)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    palette = [INK, *colormaps["tab20"].colors]
    colours = {name: palette[place % len(palette)] for place, name in enumerate(names)}
    for name, values in curves.items():
        first = name == names[0]
        left.plot(range(1, len(values) + 1), values, color=colours[name], label=name,
                  linewidth=2.4 if first else 1.4, marker="o", markersize=3,
                  zorder=3 if first else 2)  # fmt: skip
    left.set_title("PublicTest after each epoch, mean over seeds (%)", fontsize=11, loc="left")
    left.set_xlabel("epoch")
    left.xaxis.set_major_locator(whole_epochs())
    left.legend(frameon=False, fontsize=8.5)
    for place, split in enumerate(figures[names[0]]):
        for row, name in enumerate(names[1:]):
            apart = figures[name][split]["difference"]
            if apart is not None:
                right.errorbar(apart["mean"], row + (place - 0.5) * 0.28, xerr=apart["interval95"],
                               fmt="o", color=SPLITS[split], capsize=3, markersize=5,
                               linewidth=1.4, label=split if row == 0 else None)  # fmt: skip
    right.axvline(0, color=QUIET, linewidth=0.9, zorder=0)
    right.set_yticks(range(len(names) - 1), names[1:])
    right.set_ylim(len(names) - 1.4, -0.6)
    right.set_title(f"points above {names[0]}, with 95 % intervals", fontsize=11, loc="left",
                    parse_math=False)  # fmt: skip
    if len(names) > 1:
        # Below, where no interval can lie.
        right.legend(frameon=False, fontsize=8.5, loc="upper center",
                     bbox_to_anchor=(0.5, -0.08), ncols=2)  # fmt: skip
    for axes in (left, right):
        axes.grid(color=OPEN, linewidth=0.8)
        axes.set_axisbelow(True)
        quiet(axes)
    # Names of folders, in which a $ begins no formula.
    for text in (*left.get_legend().get_texts(), *right.get_yticklabels()):
        text.set_parse_math(False)
    figure.tight_layout(w_pad=2)
    return save_figure(figure, path)
