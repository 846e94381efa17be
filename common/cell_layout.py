"""The layout of a cell's drawing: positions of boxes, labels and wires without overlaps.

A layered drawing (Sugiyama et al., "Methods for Visual Understanding of Hierarchical System
Structures", 1981) from left to right. Columns of nodes alternate with columns of labels. A wire
that passes a column has a place of its own in it and is horizontal there; it bends only between
columns and so covers no label. Lengths are inches.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations, pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np

NODE = (0.62, 0.5)  # width and height of a box
LABEL_HEIGHT = 0.25
GAP = 0.13  # minimal vertical distance of two items in a column
PORT = 0.085  # distance of two wires that end at the same box
MARGIN = 0.22
RESTARTS = 24
SWEEPS = 16


class Box(NamedTuple):
    """A rectangle by its centre."""

    x: float
    y: float
    width: float
    height: float


class Layout(NamedTuple):
    """Size, boxes, and each wire as horizontal runs (x, x', y) to be joined.

    `nodes`: the states, then the output. `labels`: one per edge. `wires`: one per edge, then one
    per concatenated state.
    """

    width: float
    height: float
    nodes: list[Box]
    labels: list[Box]
    wires: list[list[tuple[float, float, float]]]


def lay_out_cell(
    inputs: Sequence[int], concat: Sequence[int], label_widths: Sequence[float]
) -> Layout:
    """Lay out a cell: edge e goes from state `inputs[e]` to state e // 2 + 2 through its label.

    `concat`: the states of the output; `label_widths`: one per edge. Deterministic.
    """
    states = len(inputs) // 2 + 2
    # The column of each state and of the output; a column of labels precedes each one of nodes.
    homes = [0, 0]
    for first, second in zip(inputs[::2], inputs[1::2], strict=True):
        homes.append(2 + max(homes[first], homes[second]))
    homes.append(1 + max(homes))

    # The items of the columns: states, output, labels, and where long wires pass.
    columns: list[list[int]] = [[] for _ in range(homes[-1] + 1)]
    heights: list[float] = []

    def place(column: int, height: float) -> int:
        columns[column].append(len(heights))
        heights.append(height)
        return len(heights) - 1

    for home in homes:
        place(home, NODE[1])
    targets = [edge // 2 + 2 for edge in range(len(inputs))] + [states] * len(concat)
    chains, labels = [], []
    for edge, (source, target) in enumerate(zip([*inputs, *concat], targets, strict=True)):
        chain = [source]
        for column in range(homes[source] + 1, homes[target]):
            labelled = edge < len(inputs) and column == homes[target] - 1
            chain.append(place(column, LABEL_HEIGHT if labelled else 0.0))
        if edge < len(inputs):
            labels.append(chain[-1])
        chains.append([*chain, target])

    y = _best_heights(columns, heights, chains)
    widths = [NODE[0] if column in homes else 0.0 for column in range(len(columns))]
    for edge, width in enumerate(label_widths):
        column = homes[targets[edge]] - 1
        widths[column] = max(widths[column], width)
    lefts = _column_lefts(widths, chains, y, homes)

    def box(item: int, column: int, width: float) -> Box:
        return Box(lefts[column] + widths[column] / 2, y[item], width, heights[item])

    wires = []
    leaving, entering = _ports(chains, y)
    for number, chain in enumerate(chains):
        spans = list(zip(lefts, np.add(lefts, widths).tolist(), strict=True))[homes[chain[0]] :]
        runs = [(*span, y[item]) for span, item in zip(spans, chain, strict=False)]
        runs[0] = (runs[0][1], runs[0][1], y[chain[0]] + leaving[number])
        runs[-1] = (runs[-1][0], runs[-1][0], y[chain[-1]] + entering[number])
        wires.append(runs)
    return Layout(
        width=lefts[-1] + widths[-1] + MARGIN,
        height=max(np.add(y, np.divide(heights, 2))) + MARGIN,
        nodes=[box(state, home, NODE[0]) for state, home in enumerate(homes)],
        labels=[
            box(item, homes[target] - 1, width)
            for item, target, width in zip(labels, targets, label_widths, strict=False)
        ],
        wires=wires,
    )


def _best_heights(
    columns: list[list[int]], heights: list[float], chains: list[list[int]]
) -> np.ndarray:
    """The y of every item, for the order of fewest crossings, then of shortest wires."""
    generator = random.Random(0)
    column_of = {item: number for number, column in enumerate(columns) for item in column}
    segments = [pair for chain in chains for pair in pairwise(chain)]
    best_key, best = (math.inf, math.inf), np.zeros(len(heights))
    for _ in range(RESTARTS):
        order = [columns[0], *(generator.sample(column, len(column)) for column in columns[1:])]
        crossings = _untangle(order, column_of, segments)
        if crossings > best_key[0]:
            continue
        y = _settle(order, heights, segments)
        length = sum(abs(y[left] - y[right]) for left, right in segments)
        key = (crossings, round(length, 6))
        if key < best_key:
            best_key, best = key, y
    # y grows upwards in matplotlib; the first input is on top.
    return MARGIN + max(np.add(best, np.divide(heights, 2))) - best


def _untangle(
    order: list[list[int]], column_of: dict[int, int], segments: list[tuple[int, int]]
) -> float:
    """Sort the columns of `order` in place by barycentres; return the number of crossings."""
    before: dict[int, list[int]] = {item: [] for item in column_of}
    behind: dict[int, list[int]] = {item: [] for item in column_of}
    for left, right in segments:
        before[right].append(left)
        behind[left].append(right)
    best, fewest = order, math.inf
    for sweep in range(SWEEPS):
        beside = before if sweep % 2 == 0 else behind
        position = {item: place for column in order for place, item in enumerate(column)}
        for column in order[1:] if sweep % 2 == 0 else order[-2:0:-1]:
            centres = {item: fmean(position[o] for o in beside[item] or [item]) for item in column}
            column.sort(key=centres.__getitem__)
            position.update((item, place) for place, item in enumerate(column))
        crossings = _crossings(position, column_of, segments)
        if crossings < fewest:
            best, fewest = [list(column) for column in order], crossings
    order[:] = best
    return fewest


def _crossings(
    position: dict[int, int], column_of: dict[int, int], segments: list[tuple[int, int]]
) -> float:
    # They cost more after labels (odd columns), so that the labels of a node are neighbours.
    spans: dict[int, list[tuple[int, int]]] = {}
    for left, right in segments:
        spans.setdefault(column_of[left], []).append((position[left], position[right]))
    return sum(
        1 + 0.25 * (column % 2)
        for column, pairs in spans.items()
        for (a, b), (c, d) in combinations(pairs, 2)
        if (a - c) * (b - d) < 0
    )


def _settle(
    order: list[list[int]], heights: list[float], segments: list[tuple[int, int]]
) -> np.ndarray:
    """The y that keep `order` and minimal distances and minimise the weighted squares of climbs.

    y = closest + offsets of the columns + additional gaps >= 0: bounded least squares.
    """
    unit = np.eye(len(heights))
    climbs, closest, offsets, gaps = [], np.zeros(len(heights)), [], []
    for left, right in segments:
        # Long wires should be straight (Gansner et al., "A Technique for Drawing Directed Graphs",
        # 1993).
        weight = (500, 2, 1)[(heights[left] == NODE[1]) + (heights[right] == NODE[1])]
        climbs.append(weight**0.5 * (unit[left] - unit[right]))
    for column in order:
        offsets.append(unit[column].sum(axis=0))
        for place, (above, below) in enumerate(pairwise(column), 1):
            closest[below] = closest[above] + (heights[above] + heights[below]) / 2 + GAP
            gaps.append(unit[column[place:]].sum(axis=0))
            # For inputs that no edge reads.
            climbs.append(0.1 * (unit[above] - unit[below]))
    climb, free = np.array(climbs), np.array([*offsets, *gaps])
    lower = np.array([-np.inf] * len(offsets) + [0.0] * len(gaps))
    # Imported here because it takes time, and training draws no cells.
    from scipy.optimize import lsq_linear

    found = lsq_linear(climb @ free.T, -climb @ closest, (lower, np.inf), method="bvls")
    return closest + found.x @ free


def _column_lefts(
    widths: list[float], chains: list[list[int]], y: np.ndarray, homes: list[int]
) -> list[float]:
    """The left x of every column; steeper wires between two columns increase their distance."""
    steepest = [0.0] * (len(widths) - 1)
    for chain in chains:
        for step, (left, right) in enumerate(pairwise(chain)):
            column = homes[chain[0]] + step
            steepest[column] = max(steepest[column], abs(y[left] - y[right]))
    lefts = [MARGIN]
    for column, climb in enumerate(steepest):
        lefts.append(lefts[-1] + widths[column] + min(0.32 + 0.22 * climb, 0.95))
    return lefts


def _ports(chains: list[list[int]], y: np.ndarray) -> tuple[list[float], list[float]]:
    """The vertical offset at which each wire leaves and enters its boxes, without crossings."""
    leaving, entering = [0.0] * len(chains), [0.0] * len(chains)
    for offsets, end, beside in ((leaving, 0, 1), (entering, -1, -2)):
        for state in {chain[end] for chain in chains}:
            ends = [number for number, chain in enumerate(chains) if chain[end] == state]
            ends.sort(key=lambda number: y[chains[number][beside]])
            step = min(PORT, (NODE[1] - 0.1) / max(len(ends) - 1, 1))
            for place, number in enumerate(ends):
                offsets[number] = (place - (len(ends) - 1) / 2) * step
    return leaving, entering
