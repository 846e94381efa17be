"""The greedy decisions of edges, against the rules written out with plain numbers."""

import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from genotypes import PRIMITIVES, Genotype, check_genotype
from model_search import EDGES, OPEN, PRUNED
from sgas import (
    EdgeScores,
    choose_edge,
    count_epochs,
    decide_edge,
    derive_cell,
    is_decision_epoch,
    min_max_normalise,
    score_edges,
)

# The first edge of each node and the one after its last.
NODES = ((0, 2), (2, 5), (5, 9), (9, 14))
Rows = Sequence[Sequence[float]]

alphas_of_a_cell = st.lists(
    st.lists(st.floats(-6.0, 6.0, allow_subnormal=False), min_size=11, max_size=11),
    min_size=14,
    max_size=14,
)


def draw_alphas(seed: int, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(14, 11, generator=torch.Generator().manual_seed(seed))


def plain_probs(row: Sequence[float]) -> tuple[float, list[float]]:
    """(importance, probabilities of the ten primitives without none)."""
    exponents = [math.exp(value) for value in row]
    importance = sum(exponents[1:]) / sum(exponents)
    return importance, [value / sum(exponents[1:]) for value in exponents[1:]]


def plain_criteria(alphas: Rows, history: Sequence[Rows] = ()) -> dict[str, list[float]]:
    """Importance, certainty and, given a history of probabilities, stability of each edge."""
    importance, certainty, stability = [], [], []
    for edge, row in enumerate(alphas):
        mass, probs = plain_probs(row)
        importance.append(mass)
        certainty.append(1.0 + sum(p * math.log(p) for p in probs if p > 0.0) / math.log(10))
        overlaps = [sum(map(min, past[edge], probs)) for past in history]
        stability.append(sum(overlaps) / len(overlaps) if overlaps else 0.0)
    return {"importance": importance, "certainty": certainty, "stability": stability}


def plain_normalise(values: Sequence[float]) -> list[float]:
    spread = max(values) - min(values)
    return [(value - min(values)) / spread if spread > 1e-12 else 0.0 for value in values]


def plain_score(criteria: dict[str, list[float]], use_history: bool) -> list[float]:
    names = ["importance", "certainty", "stability"][: 3 if use_history else 2]
    columns = [plain_normalise(criteria[name]) for name in names]
    return [math.prod(values) for values in zip(*columns, strict=True)]


@settings(max_examples=40, deadline=None)
@given(alphas_of_a_cell, st.lists(st.integers(0, 99), max_size=4), st.booleans())
def test_scores_equal_plain_criteria(rows, seeds, use_history):
    history = [score_edges(draw_alphas(seed)).probs for seed in seeds]
    scores = score_edges(torch.tensor(rows, dtype=torch.float64), history, use_history=use_history)
    expected = plain_criteria(rows, [past.tolist() for past in history])
    # Between these, scaling magnifies what two ways of rounding differ by.
    spreads = [max(values) - min(values) for values in expected.values()]
    assume(not any(1e-14 < spread < 1e-6 for spread in spreads))
    for name, values in expected.items():
        assert getattr(scores, name).tolist() == pytest.approx(values, abs=1e-9), name
    probs = [plain_probs(row)[1] for row in rows]
    assert torch.allclose(scores.probs, torch.tensor(probs, dtype=torch.float64))
    assert scores.score.tolist() == pytest.approx(plain_score(expected, use_history), abs=1e-6)


@pytest.mark.parametrize("use_history", [False, True])
def test_scores_of_alphas_at_the_start(use_history):
    alphas = draw_alphas(0, 1e-3)
    history = [score_edges(draw_alphas(seed, 1e-3)).probs for seed in (1, 2, 3, 4)]
    scores = score_edges(alphas, history, use_history=use_history)
    criteria = plain_criteria(alphas.tolist(), [past.tolist() for past in history])
    assert scores.score.tolist() == pytest.approx(plain_score(criteria, use_history), abs=1e-6)
    assert scores.score.dtype == scores.probs.dtype == torch.float64


def test_min_max_normalise_maps_constant_to_zeros():
    assert min_max_normalise(torch.tensor([3.0, 5.0, 4.0])).tolist() == [0.0, 1.0, 0.5]
    constant = torch.full((14,), 0.3, dtype=torch.float64)
    for rounding in (0.0, 2e-16):
        constant[3] += rounding
        assert min_max_normalise(constant).tolist() == [0.0] * 14


def test_ties_go_to_first_open_edge():
    scores = score_edges(torch.zeros(14, 11))
    assert not scores.score.any()
    assert choose_edge(scores, [OPEN] * 14) == (0, 1)
    assert choose_edge(scores, [4, 4, PRUNED, *[OPEN] * 11]) == (3, 1)
    # Though none is the likeliest of all.
    alphas = torch.zeros(14, 11)
    alphas[:, 0], alphas[5, 1] = 8.0, 1.0
    assert choose_edge(score_edges(alphas), [OPEN] * 14) == (5, 1)


def test_node_keeps_two_decided_edges():
    states = [OPEN] * 14
    one = decide_edge(states, 6, 4)
    assert one == [OPEN] * 6 + [4] + [OPEN] * 7
    two = decide_edge(one, 8, 9)
    assert two == [OPEN] * 5 + [PRUNED, 4, PRUNED, 9] + [OPEN] * 5
    assert decide_edge(decide_edge(two, 0, 3), 1, 3)[:3] == [3, 3, OPEN]
    assert states == [OPEN] * 14


@pytest.mark.parametrize("use_history", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_eight_decisions_make_a_cell(seed, use_history):
    dice = random.Random(seed)
    states, history = [OPEN] * 14, []
    for decision in range(8):
        rows = [[dice.gauss(0.0, 1.0) for _ in range(11)] for _ in range(14)]
        scores = score_edges(
            torch.tensor(rows, dtype=torch.float64), history, use_history=use_history
        )
        edge, primitive = choose_edge(scores, states)

        best = plain_score(plain_criteria(rows, [p.tolist() for p in history]), use_history)
        opened = [e for e in range(14) if states[e] == OPEN]
        assert edge == max(opened, key=lambda e: best[e])
        assert primitive == max(range(1, 11), key=lambda k: rows[edge][k])

        states = decide_edge(states, edge, primitive)
        assert sum(state > 0 for state in states) == decision + 1
        history = [*history, scores.probs][-4:]
    assert choose_edge(scores, states) is None
    assert states.count(PRUNED) == 6
    decided = [e for e in range(14) if states[e] > 0]
    assert [sum(first <= e < end for e in decided) for first, end in NODES] == [2, 2, 2, 2]
    cell = derive_cell(scores, states)
    assert cell == tuple((PRIMITIVES[states[e]], EDGES[e][1]) for e in decided)
    check_genotype(Genotype(cell, (2, 3, 4, 5), cell, (2, 3, 4, 5)))


def test_derived_cell_fills_up_by_importance():
    importance = [0.1, 0.2, 0.9, 0.1, 0.8, 0.4, 0.9, 0.6, 0.5, 0.1, 0.9, 0.3, 0.2, 0.8]
    best = [4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7]
    mass = torch.tensor(importance, dtype=torch.float64)
    probs = torch.full((14, 10), 0.01, dtype=torch.float64)
    probs[range(14), [primitive - 1 for primitive in best]] = 0.91
    # The scores say the contrary.
    scores = EdgeScores(mass, 1.0 - mass, 1.0 - mass, 1.0 - mass, probs)
    # A decided edge stays, however unimportant; a pruned one does not come back.
    states = [OPEN] * 14
    states[3] = 2  # node 1 from source 1
    states[6], states[7] = PRUNED, 5  # node 2 from sources 1 and 2
    states[9], states[10] = 1, PRUNED  # node 3 from sources 0 and 1
    everything = ((0, 4), (1, 5)), ((0, 6), (2, 8)), ((1, 10), (2, 1)), ((1, 4), (4, 7))
    partly = ((0, 4), (1, 5)), ((0, 6), (1, 2)), ((2, 5), (3, 2)), ((0, 1), (4, 7))
    for given_states, nodes in (([OPEN] * 14, everything), (states, partly)):
        expected = tuple((PRIMITIVES[k], source) for node in nodes for source, k in node)
        assert derive_cell(scores, given_states) == expected


def test_decision_epochs():
    def decisions(warmup: int, frequency: int) -> list[int]:
        epochs = range(count_epochs(warmup, frequency))
        return [epoch for epoch in epochs if is_decision_epoch(epoch, warmup, frequency)]

    # As published; after epoch 49 no edge is open. The shortest has its eight decisions too.
    assert decisions(9, 5) == [9, 14, 19, 24, 29, 34, 39, 44, 49]
    assert decisions(0, 1)[:8] == list(range(8))
    assert (count_epochs(9, 5), count_epochs(0, 1)) == (50, 13)
