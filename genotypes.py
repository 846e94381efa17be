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
from types import MappingProxyType
from typing import Any, NamedTuple

from operations import PRIMITIVE_TABLE
from runtime.errors import UserError, reading
from runtime.files import write_text

# Alphas and decided edges refer to the index of a searched primitive.
PRIMITIVES = tuple(name for name, entry in PRIMITIVE_TABLE.items() if entry.searched)
EXTRA_PRIMITIVES = tuple(name for name in PRIMITIVE_TABLE if name not in PRIMITIVES)

GENOTYPE_FILE = "genotype.txt"
MAX_TEXT = 20_000  # characters; the longest named genotype takes under 700
MAX_FILE = 1 << 22  # bytes read from the end of a log
_CALL = re.compile(r"\bGenotype\s*\(")
MAX_NODES = 32  # of a cell; the largest named one has five

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
        f"--arch: {_shown(spec)} found, expected one of {', '.join(NAMED)}, a literal "
        "Genotype(...), a file with one (FILE:NAME for one of several), or the run folder of a "
        "search"
    )


def load_genotype(path: Path | str, name: str | None = None) -> Genotype:
    """Read the last `Genotype(...)` of a text file, or with `name` that of `name = Genotype(...)`.

    The file may be a genotype file, a log or Python source. Raises UserError naming the file.
    """
    with reading(path, "a genotype file"), open(path, "rb") as file:
        file.seek(-min(MAX_FILE, os.fstat(file.fileno()).st_size), os.SEEK_END)
        text = file.read().decode("utf-8-sig", errors="replace")
    seen: set[str] = set()
    while name is not None:
        found = list(re.finditer(rf"^{name}\s*=\s*(.*)", text, re.MULTILINE))
        seen.add(name)
        if not found or found[-1][1].strip() in seen:
            raise UserError(f"{path}: no {name} = Genotype(...) found, expected one")
        if found[-1][1].strip().isidentifier():
            name = found[-1][1].strip()  # one name for another
        else:
            text, name = text[: _end_of_call(text, found[-1].start(1))], None
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
    calls = [match.start() for match in _CALL.finditer(text)]
    call = text[calls[-1] : _end_of_call(text, calls[-1])] if calls else text.strip()
    if len(call) > MAX_TEXT:
        raise UserError(f"{source}: more than {MAX_TEXT} characters found, expected Genotype(...)")
    try:
        genotype = _read_call(call, source)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        # MemoryError: nested too deeply for the parser.
        raise UserError(
            f"{source}: {_shown(text)} found, expected a literal Genotype(normal=[...], "
            "normal_concat=..., reduce=[...], reduce_concat=...)"
        ) from error
    return check_genotype(genotype, source)


def _end_of_call(text: str, start: int) -> int:
    """The end of the call that begins at `start`, after its closing parenthesis."""
    depth = 0
    for place in range(start, min(len(text), start + MAX_TEXT)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0 and text[place] == ")":
            return place + 1
    return len(text)


def _read_call(text: str, source: str) -> Genotype:
    call = ast.parse(text, mode="eval").body
    if not (isinstance(call, ast.Call) and _is_name(call.func, "Genotype")):
        raise ValueError("not a call of Genotype")
    keywords: dict[Any, Any] = {keyword.arg: keyword.value for keyword in call.keywords}
    if len(keywords) < len(call.keywords):
        raise ValueError("an argument is repeated")
    nodes: Any = Genotype(*call.args, **keywords)  # type: ignore[arg-type]
    return Genotype(
        ast.literal_eval(nodes.normal),
        _read_concat(nodes.normal_concat, f"{source}: normal_concat"),
        ast.literal_eval(nodes.reduce),
        _read_concat(nodes.reduce_concat, f"{source}: reduce_concat"),
    )


def _read_concat(node: ast.expr, source: str) -> Any:
    if not (isinstance(node, ast.Call) and _is_name(node.func, "range")):
        return ast.literal_eval(node)
    bounds = [ast.literal_eval(argument) for argument in node.args]
    sound = not node.keywords and len(bounds) == 2 and all(type(b) is int for b in bounds)
    # The length is checked first, as a long range would exhaust memory.
    if not sound or bounds[1] - bounds[0] > MAX_NODES:
        raise UserError(
            f"{source}: {_shown(ast.unparse(node))} found, expected range(first, end) of at most "
            f"{MAX_NODES} nodes"
        )
    return list(range(*bounds))


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def check_genotype(genotype: Any, source: str = "genotype") -> Genotype:
    """Validate `genotype`, four fields of lists or tuples, and return it as tuples.

    Each cell has 1 to MAX_NODES nodes with two edges each, known primitives other than none, node j
    reads states 0 .. j + 1, and the concatenation names different nodes. The cells may differ in
    the number of nodes. Raises UserError naming the field.
    """
    if not (isinstance(genotype, list | tuple) and len(genotype) == len(Genotype._fields)):
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
    if not isinstance(edges, list | tuple):
        raise UserError(f"{source}: {_shown(edges)} found, expected a list of edges")
    if not edges or len(edges) % 2 or len(edges) > 2 * MAX_NODES:
        raise UserError(
            f"{source}: {len(edges)} edges found, expected two for each of 1 to {MAX_NODES} nodes"
        )
    known = PRIMITIVES[1:] + EXTRA_PRIMITIVES
    for number, edge in enumerate(edges):
        if not (isinstance(edge, list | tuple) and len(edge) == 2):
            found, expected = _shown(edge), "(primitive, state)"
        elif edge[0] not in known:
            found, expected = _shown(edge[0]), f"one of {', '.join(known)}"
        elif type(edge[1]) is not int or not 0 <= edge[1] <= number // 2 + 1:
            found, expected = f"state {_shown(edge[1])}", f"0 to {number // 2 + 1}"
            expected += f" for node {number // 2}"
        else:
            continue
        raise UserError(f"{source} edge {number}: {found} found, expected {expected}")
    return tuple((primitive, state) for primitive, state in edges)


def _check_concat(concat: Any, nodes: int, source: str) -> tuple[int, ...]:
    sound = (
        isinstance(concat, list | tuple)
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
    """`repr` in at most 80 characters; integers of too many digits have none."""
    try:
        text = repr(value)
    except ValueError:
        text = f"{type(value).__name__} of too many digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
