"""The architecture loss makes alphas pay for the parameters of their primitives."""

import pytest
import torch

from architect import COSTS, complexity, penalised_edges
from genotypes import PRIMITIVES
from model_search import OPEN, PRUNED
from operations import build_primitive


def test_the_costs_are_the_weights_of_each_primitive_at_twelve_channels():
    for name in PRIMITIVES:
        op = build_primitive(name, 12, 1, affine=False)
        assert COSTS.get(name, 0) == sum(p.numel() for p in op.parameters()), name


def test_complexity_is_half_the_costs_share_of_each_squared_alpha():
    alphas = [torch.zeros(11, dtype=torch.float64) for _ in range(14)]
    alphas[0][4] = 2.0  # sep_conv_3x3
    alphas[0][3] = 9.0  # skip_connect costs nothing
    alphas[5][10] = -3.0  # conv_3x3
    alphas[6][10] = 5.0  # on an edge that is not asked for
    total = 504 + 888 + 252 + 444 + 126 + 144 + 1296
    expected = 0.5 * (4.0 * 504 + 9.0 * 1296) / total
    assert complexity(alphas, [0, 5]).item() == pytest.approx(expected, rel=1e-12)
    assert complexity(alphas, []).item() == 0.0


def test_complexity_pulls_each_alpha_by_its_cost():
    alphas = [torch.full((11,), 2.0, dtype=torch.float64, requires_grad=True) for _ in range(14)]
    complexity(alphas, [3]).backward()
    total = sum(COSTS.values())
    expected = [2.0 * COSTS.get(name, 0) / total for name in PRIMITIVES]
    assert alphas[3].grad.tolist() == pytest.approx(expected)
    assert alphas[2].grad is None


def test_open_edges_of_the_normal_cell_are_penalised_or_its_first_edge_alone():
    states = [OPEN, 4, OPEN, PRUNED, OPEN, *[OPEN] * 9]
    assert penalised_edges(states, first_only=False) == [0, 2, 4, *range(5, 14)]
    assert penalised_edges(states, first_only=True) == [0]
    states[0] = 4
    assert penalised_edges(states, first_only=False) == [2, 4, *range(5, 14)]
    assert penalised_edges(states, first_only=True) == []
    assert penalised_edges([4] * 14, first_only=False) == []
