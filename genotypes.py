"""Genotypes: the edges of a searched cell, the published ones by name, and their text form.

A cell reads two inputs, states 0 and 1. Node j is state j + 2: the sum of two edges, each a
primitive applied to one of the states 0 .. j + 1. The cell's output concatenates some of the nodes.
Text is parsed by `ast`; nothing in it is executed.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from operations import PRIMITIVE_TABLE
from runtime.errors import UserError, reading
from runtime.files import write_text

# Alphas and decided edges refer to the index of a searched primitive.
PRIMITIVES = tuple(name for name, entry in PRIMITIVE_TABLE.items() if entry.searched)
EXTRA_PRIMITIVES = tuple(name for name in PRIMITIVE_TABLE if name not in PRIMITIVES)

GENOTYPE_FILE = "genotype.txt"
# With parentheses inside as deep as edges and ranges need.
_CALL = re.compile(r"\bGenotype\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")

Edge = tuple[str, int]


class Genotype(NamedTuple):
    """The two kinds of cells.

    `normal` and `reduce`: (primitive, state) pairs, two per node, nodes in order. `normal_concat`
    and `reduce_concat`: the states (2 is node 0) that are concatenated to the output.
    """

    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]


# fmt: off
# Two nodes per line.

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

NAMED: Mapping[str, Genotype] = {
    "Auto_FERNet": Auto_FERNet, "DARTS_V1": DARTS_V1, "DARTS_V2": DARTS_V2, "SGAS_CRI1": SGAS_CRI1,
    "SGAS_CRI2": SGAS_CRI2, "NASNet": NASNet, "AmoebaNet": AmoebaNet,
}
# fmt: on


def resolve_genotype(spec: str, model_path: Path | str = "saved_models") -> Genotype:
    """The genotype of a value of `--arch`.

    `spec` is a name in `NAMED`; a text with a `Genotype(...)`, see `parse_genotype`; a file with
    one, or FILE:NAME for `NAME = Genotype(...)` in it; or the run folder of a search, as given or
    inside `model_path`. Tried in this order. Raises UserError for anything else.
    """
    if spec in NAMED:
        return NAMED[spec]
    if _CALL.search(spec):
        return parse_genotype(spec, source="--arch")
    for place in (Path(spec), Path(model_path) / spec):
        file = place / GENOTYPE_FILE if os.path.isdir(place) else place
        if os.path.isfile(file):
            return load_genotype(file)
    path, _, name = spec.rpartition(":")
    if name.isidentifier() and os.path.isfile(path):
        return load_genotype(path, name)
    raise UserError(
        f"--arch: {spec[:200]!r} found, expected one of {', '.join(NAMED)}, a literal "
        "Genotype(...), a file with one (FILE:NAME for one of several), or the run folder of a "
        "search"
    )


def load_genotype(path: Path | str, name: str | None = None) -> Genotype:
    """Read the last `Genotype(...)` of a text file, or with `name` that of `name = Genotype(...)`.

    The file may be a genotype file, a log or Python source, in which a name may stand for another.
    Raises UserError naming the file.
    """
    with reading(path, "a genotype file"):
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    if name is not None:
        value = rf"(?:\w+\.)*({_CALL.pattern}|\w+)"
        assigned = re.findall(rf"^(\w+)\s*=\s*{value}", text, re.MULTILINE)
        values = dict(assigned)  # the last of each name
        while (text := values.pop(name, "")) and not _CALL.match(text):
            name = text  # one name for another
        if not text:
            raise UserError(f"{path}: no {name} = Genotype(...) found, expected one")
    return parse_genotype(text, source=str(path))


def save_genotype(genotype: Genotype, path: Path | str) -> None:
    """Write `format_genotype` and a newline to `path`, atomically; errors as `atomic_write`."""
    write_text(path, format_genotype(genotype) + "\n")


def format_genotype(genotype: Genotype) -> str:
    """The published form in one line; the inverse of `parse_genotype`.

    `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...],
    reduce_concat=range(2, 6))`; a concatenation with gaps is a list.
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
    """Read the last literal `Genotype(...)` of a text, as printed by our search or other codes.

    What stands around it, such as a date, `genotype =` or `genotypes.`, is ignored; nothing is
    evaluated. Arguments by keyword or position, edges as lists or tuples of (primitive, state),
    concatenations as range(first, end), list or tuple, with line breaks and comments as in Python.
    `source` names the text in errors. Raises UserError for everything else.
    """
    expected = (
        "a literal Genotype(normal=[...], normal_concat=..., reduce=[...], reduce_concat=...)"
    )
    calls = _CALL.findall(text)
    if not calls:
        raise UserError(f"{source}: {text.strip()[:80]!r} found, expected {expected}")
    with reading(source, expected):
        try:
            tree = ast.parse(calls[-1], mode="eval")
        except MemoryError:  # of the parser's stack, not of the machine
            raise ValueError("nested too deeply") from None
        call: Any = tree.body
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        nodes: Any = Genotype(*call.args, **keywords)
        return check_genotype(tuple(map(_read_literal, nodes)), source)


def _read_literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "range":
        first, end = map(ast.literal_eval, node.args)
        return range(first, end)
    return ast.literal_eval(node)


def check_genotype(genotype: Any, source: str = "genotype") -> Genotype:
    """Validate `genotype`, four fields of lists or tuples, and return it as tuples.

    Each cell has two edges a node, known primitives other than none, node j reads states 0 .. j +
    1, and the concatenation names different nodes. The cells may differ in the number of nodes.
    Raises UserError naming the field.
    """
    known = PRIMITIVES[1:] + EXTRA_PRIMITIVES
    with reading(source, ", ".join(Genotype._fields)):
        fields = dict(zip(Genotype._fields, genotype, strict=True))
        for cell in ("normal", "reduce"):
            edges, concat = fields[cell], fields[f"{cell}_concat"]
            nodes = len(edges) // 2
            if not edges or len(edges) % 2:
                raise UserError(
                    f"{source}: {cell}: {len(edges)} edges found, expected two for each node"
                )
            for number, (primitive, state) in enumerate(edges):
                last = number // 2 + 1
                if primitive not in known or type(state) is not int or not 0 <= state <= last:
                    raise UserError(
                        f"{source}: {cell} edge {number}: {primitive!r}, {state!r} found, expected "
                        f"one of {', '.join(known)} and a state of 0 to {last}"
                    )
            # The length first, as a long range would exhaust memory.
            states = set(range(2, nodes + 2))
            if not 0 < len(concat) <= nodes or len(set(concat) & states) < len(concat):
                raise UserError(
                    f"{source}: {cell}_concat: {concat!r} found, expected different states of 2 to "
                    f"{nodes + 1}"
                )
            fields[cell] = tuple((primitive, state) for primitive, state in edges)
            fields[f"{cell}_concat"] = tuple(concat)
        return Genotype(**fields)
