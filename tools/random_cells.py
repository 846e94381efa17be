"""Draw random cells of the search space as large as those of a genotype: the control of a search.

    python -m tools.random_cells --like saved_models/search-EXP --count 4 --seed 0 \
        --init_channels 16 --layers 8 --out random

Parameters and multiply-adds of the network, without its auxiliary head and for a 44x44 image,
are within 3 % of those of --like. Each cell has a width of its own, for --init_channels of its
training. Prints for each the flags and figures, then a line `Genotype(...)`, which --arch reads;
with --out also writes both to a file each, random_1.txt and so on.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from common import arguments, cli
from data.augment import CROP
from data.types import CLASSES
from genotypes import PRIMITIVES, Edge, Genotype, format_genotype, resolve_genotype
from model import Network
from model_search import NODES
from runtime.errors import UserError
from runtime.files import make_folder, write_text

TOLERANCE = 0.03  # largest relative difference, of parameters and of multiply-adds
MAX_DRAWS = 100_000  # about a minute
CONCAT = tuple(range(2, 2 + NODES))
SEARCHED = PRIMITIVES[1:]  # none is no edge of a genotype

Costs = np.ndarray  # int64 (2,): parameters and multiply-adds


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m tools.random_cells")
    # fmt: off
    add = parser.add_argument
    add("--like", required=True, metavar="GENOTYPE", help="a genotype, named as for --arch")
    add("--count", type=arguments.positive_int, default=1, metavar="N", help="cells to draw")
    add("--seed", type=arguments.seed_number, default=0, metavar="S", help="seed of the draws")
    add("--init_channels", type=arguments.channels, default=36, metavar="C",
        help="channels of the first cell of the network of --like")
    add("--layers", type=arguments.cells, default=12, metavar="L", help="cells of all networks")
    add("--out", metavar="FOLDER", help="folder of the files, created if missing")
    # fmt: on
    return parser


def count_costs(genotype: Genotype, channels: int, layers: int) -> tuple[Costs, dict[str, Costs]]:
    """Costs of the network of `genotype`, and of each edge by its name, `cells.0._ops.0`.

    Multiply-adds are those of convolutions and of the last layer, for one CROP x CROP image.
    Nothing is computed: the network has no memory.
    """
    with torch.device("meta"), torch.no_grad():
        network = Network(channels, len(CLASSES), layers, False, genotype).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 1, CROP, CROP))
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    def costs(name: str, module: torch.nn.Module) -> Costs:
        return np.array([sum(p.numel() for p in module.parameters()), flops.get(name, 0) // 2])

    edges = {
        f"cells.{index}._ops.{edge}": costs(f"Network.cells.{index}._ops.{edge}", op)
        for index, cell in enumerate(network.cells)
        for edge, op in enumerate(cell._ops)  # type: ignore[arg-type, union-attr]
    }
    return costs("Global", network), edges


class CostTable:
    """The costs of every network of the search space of one width, as sums over its edges.

    An edge costs the same wherever it stands in a cell: one network that has an edge of each kind
    tells them all.
    """

    def __init__(self, channels: int, layers: int) -> None:
        inputs = tuple((name, source) for name in SEARCHED for source in (0, 1))
        nodes = tuple((name, 2) for name in SEARCHED for _ in range(2))
        genotype = Genotype(inputs, CONCAT, inputs + nodes, CONCAT)
        total, edges = count_costs(genotype, channels, layers)
        self.others = total - sum(edges.values())
        self.edges: dict[tuple[str, str, bool], Costs] = {}
        reductions = (layers // 3, 2 * layers // 3)
        for index in range(layers):
            kind = "reduce" if index in reductions else "normal"
            for number, (name, source) in enumerate(getattr(genotype, kind)):
                key = (kind, name, kind == "reduce" and source < 2)
                if number % 2 == 0:
                    more = edges[f"cells.{index}._ops.{number}"]
                    self.edges[key] = self.edges.get(key, 0) + more

    def costs(self, genotype: Genotype) -> Costs:
        """Costs of the network of a genotype that concatenates all four nodes."""
        keys = [("normal", name, False) for name, _ in genotype.normal]
        keys += [("reduce", name, source < 2) for name, source in genotype.reduce]
        zero = np.zeros(2, dtype=np.int64)  # a network may have no normal cell
        return self.others + sum(self.edges.get(key, zero) for key in keys)


def draw_cell(generator: random.Random) -> tuple[Edge, ...]:
    """A cell of the search space, each as likely: two edges a node, from different states."""
    cell: list[Edge] = []
    for node in range(NODES):
        sources = generator.choice(list(combinations(range(node + 2), 2)))
        cell += [(generator.choice(SEARCHED), source) for source in sources]
    return tuple(cell)


def draw_like(
    target: Costs, channels: int, layers: int, generator: random.Random
) -> Iterator[tuple[Genotype, int, Costs]]:
    """Different random genotypes within TOLERANCE of `target`, endless: (genotype, C, costs).

    C is that of half to twice `channels` for which the larger difference is smallest. Raises
    UserError when MAX_DRAWS draws in a row do not fit.
    """
    widths = range(channels // 2 + 1, 2 * channels)
    tables = {width: CostTable(width, layers) for width in widths}
    seen: set[Genotype] = set()
    draws = 0
    while draws < MAX_DRAWS:
        draws += 1
        genotype = Genotype(draw_cell(generator), CONCAT, draw_cell(generator), CONCAT)
        costs = {width: table.costs(genotype) for width, table in tables.items()}
        best = min(widths, key=lambda width: abs(costs[width] / target - 1.0).max())
        if abs(costs[best] / target - 1.0).max() <= TOLERANCE and genotype not in seen:
            seen.add(genotype)
            yield genotype, best, costs[best]
            draws = 0
    raise UserError(
        f"--like: {MAX_DRAWS} random cells in a row differ by more than {TOLERANCE:.0%} at every "
        f"width of {widths[0]} to {widths[-1]}; expected a genotype, width and depth with more of "
        "the same size"
    )


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print and write the cells; return the costs of --like and of each cell."""
    folder = None if args.out is None else make_folder("--out", args.out)
    target, _ = count_costs(resolve_genotype(args.like), args.init_channels, args.layers)
    print(f"# like: {describe(args.init_channels, args.layers, target, target)}")
    drawn = draw_like(target, args.init_channels, args.layers, random.Random(args.seed))
    rows = []
    for number, (genotype, width, costs) in zip(range(1, args.count + 1), drawn, strict=False):
        first = f"# random_{number}: {describe(width, args.layers, costs, target)}"
        text = f"{first}\n{format_genotype(genotype)}\n"
        print(text, end="", flush=True)
        if folder is not None:
            write_text(folder / f"random_{number}.txt", text)
        rows.append({"init_channels": width, "costs": costs.tolist(), "genotype": genotype})
    return {"like": target.tolist(), "cells": rows}


def describe(width: int, layers: int, costs: Costs, target: Costs) -> str:
    """The flags of a network, and its costs beside those of --like."""
    parameters, products = (
        f"{cost:,} {name} ({cost / goal - 1.0:+.1%})"
        for cost, goal, name in zip(costs, target, ("parameters", "multiply-adds"), strict=True)
    )
    return f"--init_channels {width} --layers {layers}: {parameters}, {products}"


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
