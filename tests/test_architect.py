"""The step on the alphas, against the same formulas written plainly and against the objective."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from architect import (
    COSTS,
    complexity,
    first_order_gradient,
    penalised_edges,
    second_order_gradient,
)
from genotypes import PRIMITIVES
from model_search import OPEN, PRUNED, Network
from operations import build_primitive

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 3e-2
FULL = torch.autocast("cpu", enabled=False)
# Two open edges in each kind of cell keep the networks small; one node of each is undecided.
PARTLY = [4, 1, OPEN, PRUNED, 10, 7, 9, PRUNED, PRUNED, OPEN, 8, PRUNED, PRUNED, OPEN]
SECOND_ORDER = {
    "precision": FULL,
    "learning_rate": LEARNING_RATE,
    "momentum": MOMENTUM,
    "weight_decay": WEIGHT_DECAY,
}


def draw_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(7, (6,), generator=generator)


TRAIN, VALID = draw_batch(1), draw_batch(2)


def sgd(network: Network) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.weight_parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
    )


def plain_loss(network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(network(batch[0]), batch[1])


def trained(steps: int = 2) -> tuple[Network, torch.optim.SGD]:
    """A partly decided supernet in float64 after `steps`, and its optimizer with its momentum."""
    torch.manual_seed(0)
    network = Network(4, 7, 3).double()
    for alpha in network.arch_parameters():
        alpha.data.normal_()
    network.set_states(PARTLY, PARTLY)
    optimizer = sgd(network)
    for seed in range(steps):
        optimizer.zero_grad()
        plain_loss(network, draw_batch(10 + seed)).backward()
        optimizer.step()
    optimizer.zero_grad()
    network.zero_grad()
    return network, optimizer


def momentum_buffers(network: Network, optimizer: torch.optim.SGD) -> list[Tensor | None]:
    return [optimizer.state[p].get("momentum_buffer") for p in network.weight_parameters()]


def copied(network: Network, optimizer: torch.optim.SGD) -> tuple[Network, torch.optim.SGD]:
    twin = copy.deepcopy(network)
    twin_optimizer = sgd(twin)
    twin_optimizer.load_state_dict(optimizer.state_dict())
    return twin, twin_optimizer


def open_alphas(network: Network) -> list[Tensor]:
    return [alpha for alpha in network.arch_parameters() if alpha.requires_grad]


def penalty_of(network: Network):
    edges = penalised_edges(network.normal_selected_idxs, first_only=False)
    return lambda: complexity(network.alphas_normal, edges)


def no_penalty() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    a, b = torch.cat(list(found)), torch.cat(list(expected))
    return ((a - b).norm() / b.norm()).item()


# --- the penalty


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


# --- gradients


def test_the_first_order_gradient_is_that_of_the_validation_loss_and_the_penalty():
    network, _ = trained()
    found = first_order_gradient(network, VALID, penalty=penalty_of(network), precision=FULL)
    twin = copy.deepcopy(network)
    (plain_loss(twin, VALID) + penalty_of(twin)()).backward()
    expected = [alpha.grad for alpha in open_alphas(twin)]
    assert len(found) == 6
    assert relative(found, expected) < 1e-12


def test_the_second_order_gradient_is_the_formula_of_darts():
    network, optimizer = trained()
    found = second_order_gradient(
        network,
        TRAIN,
        VALID,
        penalty=penalty_of(network),
        momentum_buffers=momentum_buffers(network, optimizer),
        **SECOND_ORDER,
    )

    ahead, ahead_optimizer = copied(network, optimizer)
    plain_loss(ahead, TRAIN).backward()
    ahead_optimizer.step()
    ahead.zero_grad()
    (plain_loss(ahead, VALID) + penalty_of(ahead)()).backward()
    # Primitives of decided edges that do not compute have no gradient.
    v = [0.0 * p if p.grad is None else p.grad for p in ahead.weight_parameters()]
    norm = sum((g**2).sum() for g in v) ** 0.5
    radius = 0.01 / norm

    def train_gradient(sign: int) -> list[Tensor]:
        twin = copy.deepcopy(network)
        with torch.no_grad():
            for weight, g in zip(twin.weight_parameters(), v, strict=True):
                weight += sign * radius * g
        plain_loss(twin, TRAIN).backward()
        return [alpha.grad for alpha in open_alphas(twin)]

    expected = [
        alpha.grad - LEARNING_RATE * (plus - minus) / (2 * radius)
        for alpha, plus, minus in zip(
            open_alphas(ahead), train_gradient(1), train_gradient(-1), strict=True
        )
    ]
    assert len(found) == 6
    assert relative(found, expected) < 1e-8


@pytest.mark.parametrize("steps", [0, 2])
def test_the_second_order_gradient_is_that_of_the_bilevel_objective(steps):
    """Central differences of alpha -> L_valid(w'(alpha), alpha), w' being a step of torch's SGD."""
    network, optimizer = trained(steps)
    found = second_order_gradient(
        network,
        TRAIN,
        VALID,
        penalty=no_penalty,
        momentum_buffers=momentum_buffers(network, optimizer),
        **SECOND_ORDER,
    )
    first_order = first_order_gradient(network, VALID, penalty=no_penalty, precision=FULL)

    def objective(index: int, primitive: int, move: float) -> float:
        twin, twin_optimizer = copied(network, optimizer)
        with torch.no_grad():
            open_alphas(twin)[index][primitive] += move
        plain_loss(twin, TRAIN).backward()
        twin_optimizer.step()
        return plain_loss(twin, VALID).item()

    places = [(0, 4), (0, 8), (1, 5), (2, 10), (3, 1), (3, 9), (4, 6), (5, 0), (5, 3), (5, 7)]
    expected = torch.tensor(
        [(objective(*place, 1e-5) - objective(*place, -1e-5)) / 2e-5 for place in places]
    )
    chosen, direct = (
        torch.stack([gradient[i][k] for i, k in places]).float()
        for gradient in (found, first_order)
    )
    print(expected, chosen, direct)
    assert relative([chosen], [expected]) < 0.03
    # The comparison would tell a gradient without the second term.
    assert relative([direct], [expected]) > 0.3
