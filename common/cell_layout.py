"""Where the boxes, labels and wires of a cell's drawing go, so that none lies on another.

A layered drawing (Sugiyama et al., "Methods for Visual Understanding of Hierarchical System
Structures", 1981) from left to right. Columns of nodes alternate with columns of labels; a wire
that passes a column holds a place of its own in it and crosses it level. As wires bend only
between columns, nothing can cover a label. Lengths are inches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np

NODE = (0.62, 0.5)  # width and height of a box
LABEL_HEIGHT = 0.25
GAP = 0.13  # least vertical distance of two things in a column
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
    """The drawing's size, its boxes, and each wire as the level runs (x, x', y) to be joined.

    `nodes` are the states in order, then the output; `labels` belong to the labelled edges in
    order; `wires` to those edges and then to the concatenated states in order.
    """

    width: float
    height: float
    nodes: list[Box]
    labels: list[Box]
    wires: list[list[tuple[float, float, float]]]


def lay_out_cell(
    inputs: Sequence[int], concat: Sequence[int], label_widths: Sequence[float]
) -> Layout:
    """Lay out a cell: edge e goes from state `inputs[e]` to state e // 2 + 2, under a label.

    `concat` are the states that feed the output; `label_widths` in inches, one for each edge.
    The same cell is always laid out alike.
    """
    states = len(inputs) // 2 + 2
    # The column of every state and the output; a column of labels stands before each of nodes.
    homes = [0, 0]
    for first, second in zip(inputs[::2], inputs[1::2], strict=True):
        homes.append(2 + max(homes[first], homes[second]))
    homes.append(1 + max(homes))

    # Things that hold a place: the states, the output, the labels, the passages of long wires.
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
    widths = [0.0] * len(columns)
    for home in homes:
        widths[home] = NODE[0]
    for edge, width in enumerate(label_widths):
        column = homes[targets[edge]] - 1
        widths[column] = max(widths[column], width)
    lefts = _column_lefts(widths, chains, y, homes)

    def span(column: int) -> tuple[float, float]:
        return lefts[column], lefts[column] + widths[column]

    def box(thing: int, column: int, width: float) -> Box:
        return Box(lefts[column] + widths[column] / 2, y[thing], width, heights[thing])

    wires = []
    leaving, entering = _ports(chains, y)
    for number, chain in enumerate(chains):
        first = homes[chain[0]]
        runs = [(*span(first + step), y[thing]) for step, thing in enumerate(chain)]
        runs[0] = (runs[0][1], runs[0][1], y[chain[0]] + leaving[number])
        runs[-1] = (runs[-1][0], runs[-1][0], y[chain[-1]] + entering[number])
        wires.append(runs)
    return Layout(
        width=lefts[-1] + widths[-1] + MARGIN,
        height=max(np.add(y, np.divide(heights, 2))) + MARGIN,
        nodes=[box(state, home, NODE[0]) for state, home in enumerate(homes)],
        labels=[
            box(thing, homes[targets[edge]] - 1, label_widths[edge])
            for edge, thing in enumerate(labels)
        ],
        wires=wires,
    )


def _best_heights(
    columns: list[list[int]], heights: list[float], chains: list[list[int]]
) -> np.ndarray:
    """The y of every thing: of several orders the one of fewest crossings, then shortest wires."""
    generator = random.Random(0)
    column_of = {thing: number for number, column in enumerate(columns) for thing in column}
    segments = [pair for chain in chains for pair in pairwise(chain)]
    best_key, best = None, None
    for _ in range(RESTARTS):
        order = [columns[0], *(generator.sample(column, len(column)) for column in columns[1:])]
        crossings = _untangle(order, column_of, segments)
        if best_key is not None and crossings > best_key[0]:
            continue
        y = _settle(order, heights, segments)
        length = sum(abs(y[left] - y[right]) for left, right in segments)
        key = (crossings, round(length, 6))
        if best_key is None or key < best_key:
            best_key, best = key, y
    # Matplotlib counts upwards; the first input belongs on top.
    return MARGIN + max(np.add(best, np.divide(heights, 2))) - best


def _untangle(
    order: list[list[int]], column_of: dict[int, int], segments: list[tuple[int, int]]
) -> float:
    """Sort the columns of `order` in place by barycentres; returns the crossings that are left."""
    before: dict[int, list[int]] = {thing: [] for thing in column_of}
    behind: dict[int, list[int]] = {thing: [] for thing in column_of}
    for left, right in segments:
        before[right].append(left)
        behind[left].append(right)
    best, fewest = [], None
    for sweep in range(SWEEPS):
        beside = before if sweep % 2 == 0 else behind
        position = {thing: place for column in order for place, thing in enumerate(column)}
        for column in order[1:] if sweep % 2 == 0 else order[-2:0:-1]:
            barycentre = {
                thing: fmean(position[other] for other in beside[thing] or [thing])
                for thing in column
            }
            column.sort(key=barycentre.__getitem__)
            position.update((thing, place) for place, thing in enumerate(column))
        crossings = _crossings(position, column_of, segments)
        if fewest is None or crossings < fewest:
            best, fewest = [list(column) for column in order], crossings
    order[:] = best
    return fewest


def _crossings(
    position: dict[int, int], column_of: dict[int, int], segments: list[tuple[int, int]]
) -> float:
    # Behind the labels (odd columns) they cost more, so that a node's labels stand side by side.
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
    """The y that keep `order` and distances, with the least weighted sum of squared climbs.

    y = closest + bases of the columns + gaps above the least, gaps >= 0: non-negative least
    squares once the bases are projected out.
    """
    unit = np.eye(len(heights))
    climbs, closest, bases, gaps = [], np.zeros(len(heights)), [], []
    for left, right in segments:
        # A wire on its way shall run straight rather than its ends be near (Gansner et al., "A
        # Technique for Drawing Directed Graphs", 1993).
        weight = (500, 2, 1)[(heights[left] == NODE[1]) + (heights[right] == NODE[1])]
        climbs.append(weight**0.5 * (unit[left] - unit[right]))
    for column in order:
        bases.append(unit[column].sum(axis=0))
        for place, (above, below) in enumerate(pairwise(column)):
            closest[below] = closest[above] + (heights[above] + heights[below]) / 2 + GAP
            gaps.append(unit[column[place + 1 :]].sum(axis=0))
            # Holds what no wire does: an input that no edge reads.
            climbs.append(0.1 * (unit[above] - unit[below]))
    climbs = np.array(climbs)
    by_base, by_gap = climbs @ np.transpose(bases), climbs @ np.transpose(gaps)
    rest = np.eye(len(climbs)) - by_base @ np.linalg.pinv(by_base)
    # Only now, as it takes a second to import, and training draws no cells.
    from sklearn.linear_model import LinearRegression

    solver = LinearRegression(positive=True, fit_intercept=False)
    gap = solver.fit(rest @ by_gap, -rest @ climbs @ closest).coef_
    base = -np.linalg.pinv(by_base) @ (climbs @ closest + by_gap @ gap)
    return closest + base @ bases + gap @ gaps


def _column_lefts(
    widths: list[float], chains: list[list[int]], y: np.ndarray, homes: list[int]
) -> list[float]:
    """The left x of every column: steeper wires between two columns set them further apart."""
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
    """How far from the middle of its box each wire leaves and enters, in the order they arrive."""
    leaving, entering = [0.0] * len(chains), [0.0] * len(chains)
    for offsets, end, beside in ((leaving, 0, 1), (entering, -1, -2)):
        for state in {chain[end] for chain in chains}:
            ends = [number for number, chain in enumerate(chains) if chain[end] == state]
            ends.sort(key=lambda number: y[chains[number][beside]])
            step = min(PORT, (NODE[1] - 0.1) / max(len(ends) - 1, 1))
            for place, number in enumerate(ends):
                offsets[number] = (place - (len(ends) - 1) / 2) * step
    return leaving, entering
