"""Genotypes: the published ones, their text form, and the validation of it."""

import hashlib
import json

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
    parse_genotype,
    resolve_genotype,
    save_genotype,
)
from runtime.errors import UserError

# Of the text of all named genotypes, each of which was compared with its publication.
PUBLISHED = "335d9ef547c4facdf4fde87542016aeccae6f93ca755f452935f2a7e4211858e"
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


@st.composite
def cells(draw):
    nodes = draw(st.integers(1, 7))
    known = st.sampled_from(PRIMITIVES[1:] + EXTRA_PRIMITIVES)
    edges = tuple(
        (draw(known), draw(st.integers(0, node + 1))) for node in range(nodes) for _ in range(2)
    )
    concat = draw(st.lists(st.integers(2, nodes + 1), min_size=1, unique=True))
    return edges, tuple(concat)


def test_named_genotypes_are_published():
    texts = [(name, format_genotype(genotype)) for name, genotype in NAMED.items()]
    assert hashlib.sha256(repr(texts).encode()).hexdigest() == PUBLISHED
    assert all(getattr(genotypes, name) is genotype for name, genotype in NAMED.items())


@pytest.mark.parametrize("name", NAMED)
def test_named_genotype_in_every_form(name, tmp_path):
    text = format_genotype(NAMED[name])
    save_genotype(NAMED[name], tmp_path / "genotype.txt")
    assert (tmp_path / "genotype.txt").read_text() == text + "\n"
    specs = (name, text, str(tmp_path / "genotype.txt"), str(tmp_path))
    assert [resolve_genotype(spec) for spec in specs] == [NAMED[name]] * 4


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
        ("normal", "[('ghost', 0), ('ghost', 1), ('ghost', 3), ('ghost', 0)]", ", 3", "0 to 2"),
        ("reduce", "[('ghost', 0), ('ghost', -1)]", ", -1", "0 to 1"),
        ("reduce", "[('ghost', 0), ('ghost', True)]", ", True", "0 to 1"),
        ("normal", "[('ghost', 0)]", "1 edges", "two for each node"),
        ("normal_concat", "[3]", "[3]", "states of 2 to 2"),
        ("normal_concat", "[2, 2]", "[2, 2]", "different states"),
        ("reduce_concat", "[]", "[]", "different states"),
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
        ("Genotype(", "a literal Genotype"),
        (str(tmp_path / "folder"), "folder' found, expected one of"),
        (str(tmp_path / "bytes"), "bytes: "),
        (str(tmp_path / "other"), "other: 'Genome()' found"),
    ):
        with pytest.raises(UserError) as error:
            resolve_genotype(spec)
        assert wanted in str(error.value)
        assert "\n" not in str(error.value)
