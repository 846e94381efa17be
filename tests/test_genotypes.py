"""Genotypes: the published ones, their text form, and the validation of it."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import genotypes
from genotypes import (
    EXTRA_PRIMITIVES,
    NAMED,
    PRIMITIVES,
    Genotype,
    check_genotype,
    format_genotype,
    load_genotype,
    parse_genotype,
    resolve_genotype,
    save_genotype,
)
from runtime.errors import UserError

# The published cells, in a notation of their own: "primitive:state" per edge, then "|" and the
# states concatenated.
PUBLISHED = {
    "Auto_FERNet": (
        "sep_conv_3x3:0 conv_3x3:1 dil_conv_5x5:0 conv_1x1:2 ghost:2 dil_conv_5x5:3 "
        "skip_connect:0 conv_1x1:1 | 2 3 4 5",
        "max_pool_3x3:0 max_pool_3x3:1 max_pool_3x3:0 dil_conv_5x5:2 avg_pool_3x3:1 "
        "skip_connect:2 avg_pool_3x3:0 sep_conv_3x3:2 | 2 3 4 5",
    ),
    "DARTS_V1": (
        "sep_conv_3x3:1 sep_conv_3x3:0 skip_connect:0 sep_conv_3x3:1 skip_connect:0 "
        "sep_conv_3x3:1 sep_conv_3x3:0 skip_connect:2 | 2 3 4 5",
        "max_pool_3x3:0 max_pool_3x3:1 skip_connect:2 max_pool_3x3:0 max_pool_3x3:0 "
        "skip_connect:2 skip_connect:2 avg_pool_3x3:0 | 2 3 4 5",
    ),
    "DARTS_V2": (
        "sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:1 "
        "skip_connect:0 skip_connect:0 dil_conv_3x3:2 | 2 3 4 5",
        "max_pool_3x3:0 max_pool_3x3:1 skip_connect:2 max_pool_3x3:1 max_pool_3x3:0 "
        "skip_connect:2 skip_connect:2 max_pool_3x3:1 | 2 3 4 5",
    ),
    "SGAS_CRI1": (
        "sep_conv_3x3:0 dil_conv_3x3:1 sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_5x5:1 "
        "sep_conv_5x5:3 skip_connect:0 dil_conv_5x5:2 | 2 3 4 5",
        "max_pool_3x3:0 dil_conv_5x5:1 sep_conv_3x3:0 skip_connect:2 sep_conv_3x3:1 "
        "skip_connect:2 max_pool_3x3:0 max_pool_3x3:1 | 2 3 4 5",
    ),
    "SGAS_CRI2": (
        "sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:0 sep_conv_3x3:2 max_pool_3x3:0 "
        "sep_conv_3x3:3 sep_conv_3x3:2 sep_conv_3x3:3 | 2 3 4 5",
        "sep_conv_3x3:0 max_pool_3x3:1 dil_conv_3x3:0 max_pool_3x3:1 max_pool_3x3:0 "
        "sep_conv_3x3:2 max_pool_3x3:0 sep_conv_5x5:2 | 2 3 4 5",
    ),
    "NASNet": (
        "sep_conv_5x5:1 sep_conv_3x3:0 sep_conv_5x5:0 sep_conv_3x3:0 avg_pool_3x3:1 "
        "skip_connect:0 avg_pool_3x3:0 avg_pool_3x3:0 sep_conv_3x3:1 skip_connect:1 | 2 3 4 5 6",
        "sep_conv_5x5:1 sep_conv_7x7:0 max_pool_3x3:1 sep_conv_7x7:0 avg_pool_3x3:1 "
        "sep_conv_5x5:0 skip_connect:3 avg_pool_3x3:2 sep_conv_3x3:2 max_pool_3x3:1 | 4 5 6",
    ),
    "AmoebaNet": (
        "avg_pool_3x3:0 max_pool_3x3:1 sep_conv_3x3:0 sep_conv_5x5:2 sep_conv_3x3:0 "
        "avg_pool_3x3:3 sep_conv_3x3:1 skip_connect:1 skip_connect:0 avg_pool_3x3:1 | 4 5 6",
        "avg_pool_3x3:0 sep_conv_3x3:1 max_pool_3x3:0 sep_conv_7x7:2 sep_conv_7x7:0 "
        "avg_pool_3x3:1 max_pool_3x3:0 max_pool_3x3:1 conv_7x1_1x7:0 sep_conv_3x3:5 | 3 4 6",
    ),
}

# Exactly as the published search prints it.
PRINTED = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('conv_3x3', 1), ('dil_conv_5x5', 0), ('conv_1x1', 2), "
    "('ghost', 2), ('dil_conv_5x5', 3), ('skip_connect', 0), ('conv_1x1', 1)], "
    "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), "
    "('max_pool_3x3', 0), ('dil_conv_5x5', 2), ('avg_pool_3x3', 1), ('skip_connect', 2), "
    "('avg_pool_3x3', 0), ('sep_conv_3x3', 2)], reduce_concat=range(2, 6))"
)
NODE = "[('ghost', 0), ('ghost', 1)]"


def one_node(normal=NODE, normal_concat="[2]", reduce=NODE, reduce_concat="[2]"):
    return (
        f"Genotype(normal={normal}, normal_concat={normal_concat}, "
        f"reduce={reduce}, reduce_concat={reduce_concat})"
    )


def expected(name):
    fields = []
    for cell in PUBLISHED[name]:
        edges, concat = cell.split(" | ")
        pairs = [edge.split(":") for edge in edges.split()]
        fields += [
            tuple((primitive, int(state)) for primitive, state in pairs),
            tuple(int(state) for state in concat.split()),
        ]
    return Genotype(*fields)


@st.composite
def cells(draw):
    nodes = draw(st.integers(1, 7))
    known = st.sampled_from(PRIMITIVES[1:] + EXTRA_PRIMITIVES)
    edges = tuple(
        (draw(known), draw(st.integers(0, node + 1))) for node in range(nodes) for _ in range(2)
    )
    concat = draw(st.lists(st.integers(2, nodes + 1), min_size=1, unique=True))
    return edges, tuple(concat)


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_genotypes_are_published_and_roundtrip(name, tmp_path):
    assert list(NAMED) == list(PUBLISHED)
    assert NAMED[name] == getattr(genotypes, name) == expected(name)
    text = format_genotype(expected(name))
    assert "\n" not in text
    assert parse_genotype(text) == expected(name)
    save_genotype(expected(name), tmp_path / "genotype.txt")
    assert load_genotype(tmp_path / "genotype.txt") == expected(name)
    assert (tmp_path / "genotype.txt").read_text() == text + "\n"
    specs = (name, text, str(tmp_path / "genotype.txt"), str(tmp_path))
    assert [resolve_genotype(spec) for spec in specs] == [expected(name)] * 4


def test_format_is_published_form():
    assert format_genotype(NAMED["Auto_FERNet"]) == PRINTED
    assert format_genotype(NAMED["AmoebaNet"]).endswith("reduce_concat=[3, 4, 6])")
    for end in range(0, len(PRINTED), 3):
        with pytest.raises(UserError):
            parse_genotype(PRINTED[:end])


@given(cells(), cells())
@settings(max_examples=60, deadline=None)
def test_any_genotype_roundtrips(normal, reduce):
    genotype = Genotype(*normal, *reduce)
    assert check_genotype(genotype) == genotype
    assert parse_genotype(format_genotype(genotype)) == genotype
    assert check_genotype(json.loads(json.dumps(genotype))) == genotype


def test_equivalent_forms_parse_alike():
    plain = parse_genotype(one_node())
    assert plain == Genotype((("ghost", 0), ("ghost", 1)), (2,), (("ghost", 0), ("ghost", 1)), (2,))
    for text in (
        f"Genotype({NODE}, [2], {NODE}, [2])",
        f"Genotype({NODE}, [2], reduce_concat=(2,), reduce={NODE})",
        one_node(normal="(('ghost', 0), ['ghost', 1])", normal_concat="range(2, 3)"),
        f"\n# found by a search\nGenotype(\n  {NODE}, range(2, 3),\n  {NODE}, [2],  # end\n)\n",
    ):
        assert parse_genotype(text) == plain
    two = "[('ghost', 0), ('ghost', 1), ('ghost', 2), ('conv_1x1', 0)]"
    genotype = parse_genotype(one_node(reduce=two, reduce_concat="range(2, 4)"))
    assert (len(genotype.normal), len(genotype.reduce)) == (2, 4)


@pytest.mark.parametrize(
    "field, value, found, wanted",
    [
        ("normal", "[('shuffle', 0), ('ghost', 1)]", "'shuffle'", "conv_7x1_1x7"),
        ("normal", "[('none', 0), ('ghost', 1)]", "'none'", "max_pool_3x3"),
        ("normal", "[('ghost', 0), ('ghost', 1), ('ghost', 3), ('ghost', 0)]", "state 3", "0 to 2"),
        ("reduce", "[('ghost', 0), ('ghost', 2)]", "state 2", "0 to 1 for node 0"),
        ("reduce", "[('ghost', 0), ('ghost', -1)]", "state -1", "0 to 1"),
        ("reduce", "[('ghost', 0), ('ghost', True)]", "state True", "0 to 1"),
        ("normal", "[('ghost', 0)]", "1 edges", "two for each node"),
        ("normal_concat", "[3]", "[3]", "states of 2 to 2"),
        ("normal_concat", "[2, 2]", "[2, 2]", "different states"),
        ("reduce_concat", "[]", "[]", "different states"),
        ("reduce_concat", "range(5, 2)", "range(5, 2)", "different states"),
        ("reduce_concat", "range(0, 1000000000000)", "1000000000000", "different states"),
    ],
)
def test_invalid_genotype_names_field(field, value, found, wanted):
    with pytest.raises(UserError) as error:
        parse_genotype(one_node(**{field: value}), source="arch.txt")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"arch.txt: {field}")
    assert found in message
    assert wanted in message.split(" expected ")[1]


WRONG = {
    "empty": "",
    "call inside": one_node(normal="__import__('os').system('touch owned')"),
    "call in a range": one_node(normal_concat="range(2, int('3'))"),
    "arithmetic": one_node(normal_concat="range(0, 10**12)"),
    "field missing": f"Genotype({NODE}, [2], {NODE})",
    "not closed": one_node()[:-1],
    "edge of three": one_node(normal="[('ghost', 0), ('ghost', 1, 2)]"),
    "lone surrogate": one_node(normal="'\ud800'"),
    "nested brackets": one_node(normal="[" * 90 + "]" * 90),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_wrong_text_is_one_short_error(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        parse_genotype(text, source="arch.txt")
    assert str(error.value).startswith("arch.txt: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert not list(tmp_path.iterdir())


def test_other_arch_is_user_error(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "other").write_text("Genome()")
    for spec, wanted in (
        ("auto_fernet", "Auto_FERNet, DARTS_V1"),
        (str(tmp_path / "missing"), "FILE:NAME for one of several"),
        ("a\0b", "Auto_FERNet"),
        ("x" * 5000, "Auto_FERNet"),
        ("Genotype(", "expected a literal Genotype"),
        (str(tmp_path / "folder"), "folder' found, expected one of"),
        (str(tmp_path / "bytes"), "bytes: "),
        (str(tmp_path / "other"), "other: 'Genome()' found"),
    ):
        with pytest.raises(UserError) as error:
            resolve_genotype(spec)
        assert wanted in str(error.value)
        assert "\n" not in str(error.value)


def test_nothing_is_evaluated():
    tree = ast.parse(Path(genotypes.__file__).read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__", "globals"}
