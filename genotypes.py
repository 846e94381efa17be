"""Genotypes: what a searched cell is made of, the named ones, and their text form.

A cell reads two inputs, states 0 and 1; node j adds state j + 2, the sum of two edges, each a
primitive applied to one of the states 0 .. j + 1; the cell's output concatenates some of the nodes.
Text becomes a genotype by `ast` alone: nothing in it is ever executed.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from utils import UserError, write_text

# The order is part of the file formats: the index of a primitive is what alphas and decided edges
# refer to.
PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "ghost",
    "conv_1x1",
    "conv_3x3",
)
# Never searched; the cells of NASNet and AmoebaNet need them.
EXTRA_PRIMITIVES = ("sep_conv_7x7", "conv_7x1_1x7")

GENOTYPE_FILE = "genotype.txt"
MAX_TEXT = 20_000  # characters; the longest named genotype takes under 700
MAX_NODES = 32  # of a cell; the largest named one has five

Edge = tuple[str, int]


class Genotype(NamedTuple):
    """Both cells: `normal` and `reduce` are (primitive, state) pairs, two per node, nodes in order;
    `normal_concat` and `reduce_concat` are the states (2 = node 0) that make up the output."""

    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]


# fmt: off
# Two nodes a line.

# Li et al., "Auto-FERNet: A Facial Expression Recognition Network With Architecture Search", 2021.
Auto_FERNet = Genotype(
    normal=(
        ("sep_conv_3x3", 0), ("conv_3x3", 1),  ("dil_conv_5x5", 0), ("conv_1x1", 2),
        ("ghost", 2), ("dil_conv_5x5", 3),  ("skip_connect", 0), ("conv_1x1", 1),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),  ("max_pool_3x3", 0), ("dil_conv_5x5", 2),
        ("avg_pool_3x3", 1), ("skip_connect", 2),  ("avg_pool_3x3", 0), ("sep_conv_3x3", 2),
    ),
    reduce_concat=(2, 3, 4, 5),
)

# Liu et al., "DARTS: Differentiable Architecture Search", 2019: first and second order, CIFAR-10.
DARTS_V1 = Genotype(
    normal=(
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 0),  ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("skip_connect", 0), ("sep_conv_3x3", 1),  ("sep_conv_3x3", 0), ("skip_connect", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),  ("skip_connect", 2), ("max_pool_3x3", 0),
        ("max_pool_3x3", 0), ("skip_connect", 2),  ("skip_connect", 2), ("avg_pool_3x3", 0),
    ),
    reduce_concat=(2, 3, 4, 5),
)
DARTS_V2 = Genotype(
    normal=(
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),  ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("skip_connect", 0),  ("skip_connect", 0), ("dil_conv_3x3", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),  ("skip_connect", 2), ("max_pool_3x3", 1),
        ("max_pool_3x3", 0), ("skip_connect", 2),  ("skip_connect", 2), ("max_pool_3x3", 1),
    ),
    reduce_concat=(2, 3, 4, 5),
)

# Li et al., "SGAS: Sequential Greedy Architecture Search", 2020: the best of each criterion.
SGAS_CRI1 = Genotype(
    normal=(
        ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),  ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_5x5", 1), ("sep_conv_5x5", 3),  ("skip_connect", 0), ("dil_conv_5x5", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("dil_conv_5x5", 1),  ("sep_conv_3x3", 0), ("skip_connect", 2),
        ("sep_conv_3x3", 1), ("skip_connect", 2),  ("max_pool_3x3", 0), ("max_pool_3x3", 1),
    ),
    reduce_concat=(2, 3, 4, 5),
)
SGAS_CRI2 = Genotype(
    normal=(
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),  ("sep_conv_3x3", 0), ("sep_conv_3x3", 2),
        ("max_pool_3x3", 0), ("sep_conv_3x3", 3),  ("sep_conv_3x3", 2), ("sep_conv_3x3", 3),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("sep_conv_3x3", 0), ("max_pool_3x3", 1),  ("dil_conv_3x3", 0), ("max_pool_3x3", 1),
        ("max_pool_3x3", 0), ("sep_conv_3x3", 2),  ("max_pool_3x3", 0), ("sep_conv_5x5", 2),
    ),
    reduce_concat=(2, 3, 4, 5),
)

# Zoph et al., "Learning Transferable Architectures for Scalable Image Recognition", 2018: NASNet-A.
NASNet = Genotype(
    normal=(
        ("sep_conv_5x5", 1), ("sep_conv_3x3", 0),  ("sep_conv_5x5", 0), ("sep_conv_3x3", 0),
        ("avg_pool_3x3", 1), ("skip_connect", 0),  ("avg_pool_3x3", 0), ("avg_pool_3x3", 0),
        ("sep_conv_3x3", 1), ("skip_connect", 1),
    ),
    normal_concat=(2, 3, 4, 5, 6),
    reduce=(
        ("sep_conv_5x5", 1), ("sep_conv_7x7", 0),  ("max_pool_3x3", 1), ("sep_conv_7x7", 0),
        ("avg_pool_3x3", 1), ("sep_conv_5x5", 0),  ("skip_connect", 3), ("avg_pool_3x3", 2),
        ("sep_conv_3x3", 2), ("max_pool_3x3", 1),
    ),
    reduce_concat=(4, 5, 6),
)

# Real et al., "Regularized Evolution for Image Classifier Architecture Search", 2019: AmoebaNet-A.
AmoebaNet = Genotype(
    normal=(
        ("avg_pool_3x3", 0), ("max_pool_3x3", 1),  ("sep_conv_3x3", 0), ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0), ("avg_pool_3x3", 3),  ("sep_conv_3x3", 1), ("skip_connect", 1),
        ("skip_connect", 0), ("avg_pool_3x3", 1),
    ),
    normal_concat=(4, 5, 6),
    reduce=(
        ("avg_pool_3x3", 0), ("sep_conv_3x3", 1),  ("max_pool_3x3", 0), ("sep_conv_7x7", 2),
        ("sep_conv_7x7", 0), ("avg_pool_3x3", 1),  ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("conv_7x1_1x7", 0), ("sep_conv_3x3", 5),
    ),
    reduce_concat=(3, 4, 6),
)
# fmt: on

NAMED: Mapping[str, Genotype] = MappingProxyType(
    {
        "Auto_FERNet": Auto_FERNet,
        "DARTS_V1": DARTS_V1,
        "DARTS_V2": DARTS_V2,
        "SGAS_CRI1": SGAS_CRI1,
        "SGAS_CRI2": SGAS_CRI2,
        "NASNet": NASNet,
        "AmoebaNet": AmoebaNet,
    }
)


def resolve_genotype(spec: str) -> Genotype:
    """The genotype that a value of `--arch` means.

    `spec` is a name in `NAMED`, a literal `Genotype(...)`, a genotype file, or a search's run
    folder, which holds `genotype.txt`; tried in this order. Raises UserError for anything else.
    """
    if spec in NAMED:
        return NAMED[spec]
    if spec.split("(")[0].strip() == "Genotype" and "(" in spec:
        return parse_genotype(spec, source="--arch")
    if os.path.isdir(spec):
        return load_genotype(Path(spec) / GENOTYPE_FILE)
    if os.path.isfile(spec):
        return load_genotype(spec)
    raise UserError(
        f"--arch: {_shown(spec)} found, expected one of {', '.join(NAMED)}, a literal "
        "Genotype(...), a genotype file or the run folder of a search"
    )


def load_genotype(path: Path | str) -> Genotype:
    """Read a genotype from a UTF-8 text file that holds one literal `Genotype(...)`.

    Raises UserError naming the file when it is missing, unreadable or holds anything else.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_TEXT + 1)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: {reason}, expected a genotype file") from error
    except ValueError as error:
        raise UserError(f"{path}: not UTF-8 text, expected a literal Genotype(...)") from error
    return parse_genotype(text, source=str(path))


def save_genotype(genotype: Genotype, path: Path | str) -> None:
    """Write `format_genotype` and a newline to `path`, atomically; errors as `atomic_write`."""
    write_text(path, format_genotype(genotype) + "\n")


def format_genotype(genotype: Genotype) -> str:
    """The one-line published form, which `parse_genotype` reads back to the same genotype.

    `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...],
    reduce_concat=range(2, 6))`; a concatenation with gaps is printed as a list.
    """
    return (
        f"Genotype(normal={list(genotype.normal)}, "
        f"normal_concat={_format_concat(genotype.normal_concat)}, "
        f"reduce={list(genotype.reduce)}, "
        f"reduce_concat={_format_concat(genotype.reduce_concat)})"
    )


def _format_concat(concat: tuple[int, ...]) -> str:
    run = range(concat[0], concat[0] + len(concat))
    return repr(run) if tuple(run) == tuple(concat) else repr(list(concat))


def parse_genotype(text: str, source: str = "genotype") -> Genotype:
    """Read a literal `Genotype(...)` as our search or the published code prints it.

    Arguments by keyword or position, edges as lists or tuples of (primitive, state), concatenations
    as range(a, b), list or tuple; line breaks and comments may stand where Python allows them.
    Nothing is evaluated, and a range is measured before it is spelled out. `source` names the text
    in errors. Raises UserError for everything else, hostile text included.
    """
    if len(text) > MAX_TEXT:
        raise UserError(f"{source}: more than {MAX_TEXT} characters found, expected Genotype(...)")
    try:
        return check_genotype(_read_call(text.strip(), source), source)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        # What ast raises for text that is not Python, not a literal, or nested too deeply.
        raise UserError(
            f"{source}: {_shown(text)} found, expected a literal Genotype(normal=[...], "
            "normal_concat=..., reduce=[...], reduce_concat=...)"
        ) from error


def _read_call(text: str, source: str) -> Genotype:
    call = ast.parse(text, mode="eval").body
    if not (isinstance(call, ast.Call) and _is_name(call.func, "Genotype")):
        raise ValueError("not a call of Genotype")
    fields = Genotype._fields
    if len(call.args) > len(fields):
        raise UserError(f"{source}: {len(call.args)} arguments found, expected {', '.join(fields)}")
    arguments: dict[str, ast.expr] = dict(zip(fields, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg not in fields or keyword.arg in arguments:
            fault = "twice" if keyword.arg in arguments else "found"
            raise UserError(
                f"{source}: argument {_shown(keyword.arg or '**')} {fault}, expected each of "
                f"{', '.join(fields)} once"
            )
        arguments[keyword.arg] = keyword.value
    missing = [name for name in fields if name not in arguments]
    if missing:
        raise UserError(f"{source}: no {' and no '.join(missing)} found, expected all of them")
    return Genotype(
        ast.literal_eval(arguments["normal"]),
        _read_concat(arguments["normal_concat"], f"{source}: normal_concat"),
        ast.literal_eval(arguments["reduce"]),
        _read_concat(arguments["reduce_concat"], f"{source}: reduce_concat"),
    )


def _read_concat(node: ast.expr, source: str) -> Any:
    if not (isinstance(node, ast.Call) and _is_name(node.func, "range")):
        return ast.literal_eval(node)
    bounds = [ast.literal_eval(argument) for argument in node.args]
    if node.keywords or len(bounds) != 2 or any(type(bound) is not int for bound in bounds):
        raise UserError(f"{source}: {_shown(ast.unparse(node))} found, expected range(first, end)")
    start, stop = bounds
    if stop - start > MAX_TEXT:
        raise UserError(f"{source}: a range of {stop - start} found, expected one of nodes")
    return list(range(start, stop))


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def check_genotype(genotype: Any, source: str = "genotype") -> Genotype:
    """`genotype`, four fields of lists or tuples, as a `Genotype` of tuples when it is sound.

    Sound: per cell two edges a node and 1 to MAX_NODES nodes, primitives of `PRIMITIVES` other than
    none or of `EXTRA_PRIMITIVES`, node j reading states 0 .. j + 1, and a concatenation of
    different nodes' states. The cells may differ in nodes. Raises UserError naming the place.
    """
    if not (isinstance(genotype, (list, tuple)) and len(genotype) == len(Genotype._fields)):
        raise UserError(
            f"{source}: {_shown(genotype)} found, expected {', '.join(Genotype._fields)}"
        )
    normal, normal_concat, reduce, reduce_concat = genotype
    return Genotype(
        _check_edges(normal, f"{source}: normal"),
        _check_concat(normal_concat, len(normal) // 2, f"{source}: normal_concat"),
        _check_edges(reduce, f"{source}: reduce"),
        _check_concat(reduce_concat, len(reduce) // 2, f"{source}: reduce_concat"),
    )


def _check_edges(edges: Any, source: str) -> tuple[Edge, ...]:
    if not isinstance(edges, (list, tuple)):
        raise UserError(f"{source}: {_shown(edges)} found, expected a list of edges")
    if not edges or len(edges) % 2 or len(edges) > 2 * MAX_NODES:
        raise UserError(
            f"{source}: {len(edges)} edges found, expected two for each of 1 to {MAX_NODES} nodes"
        )
    return tuple(
        _check_edge(edge, number // 2, f"{source} edge {number}")
        for number, edge in enumerate(edges)
    )


def _check_edge(edge: Any, node: int, source: str) -> Edge:
    if not (isinstance(edge, (list, tuple)) and len(edge) == 2):
        raise UserError(f"{source}: {_shown(edge)} found, expected (primitive, state)")
    primitive, state = edge
    known = PRIMITIVES[1:] + EXTRA_PRIMITIVES
    if primitive not in known:
        raise UserError(f"{source}: {_shown(primitive)} found, expected one of {', '.join(known)}")
    if type(state) is not int or not 0 <= state <= node + 1:
        raise UserError(
            f"{source}: state {_shown(state)} found, expected 0 to {node + 1} for node {node}"
        )
    return primitive, state


def _check_concat(concat: Any, nodes: int, source: str) -> tuple[int, ...]:
    sound = (
        isinstance(concat, (list, tuple))
        and len(concat) > 0
        and all(type(state) is int and 2 <= state <= nodes + 1 for state in concat)
        and len(set(concat)) == len(concat)
    )
    if not sound:
        raise UserError(
            f"{source}: {_shown(concat)} found, expected different states of 2 to {nodes + 1}"
        )
    return tuple(concat)


def _shown(value: Any) -> str:
    """`repr`, shortened to fit a line; an integer too long for decimal digits shows its type."""
    try:
        text = repr(value)
    except ValueError:
        text = f"{type(value).__name__} of too many digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
