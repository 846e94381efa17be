"""The step on the alphas against DARTS written plainly, and the penalty on costly primitives."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import search
from architect import Architect, Batch, complexity
from common.parsing import parse
from engine import build_optimizer
from genotypes import PRIMITIVES
from model_search import OPEN, PRUNED, Network, Source
from operations import PRIMITIVE_TABLE
from runtime.run import autocast

LEARNING_RATE = 0.1
ARGS = parse(
    search.build_parser(),
    f"--learning_rate {LEARNING_RATE} --momentum 0.9 --weight_decay 3e-2".split(),
)
FULL = autocast(torch.device("cpu"), "off")
COSTS = [PRIMITIVE_TABLE[name].cost for name in PRIMITIVES]
# Three open edges in each kind of cell keep the networks small.
PARTLY = [4, 1, OPEN, PRUNED, 10, 7, 9, PRUNED, PRUNED, OPEN, 8, PRUNED, PRUNED, OPEN]
DECIDED = [1, 1, 1, 1, PRUNED, 1, 1, PRUNED, PRUNED, 1, 1, PRUNED, PRUNED, PRUNED]


def draw_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(7, (6,), generator=generator)


TRAIN, VALID = draw_batch(1), draw_batch(2)


def plain_loss(network: Network, batch: Batch) -> Tensor:
    return F.cross_entropy(network(batch[0]), batch[1])


def plain_penalty(network: Network) -> Tensor:
    edges = [edge for edge, state in enumerate(network.normal_selected_idxs) if state == OPEN]
    shares = torch.tensor(COSTS, dtype=torch.float64) / sum(COSTS)
    return sum(0.5 * (network.alphas_normal[edge] ** 2 * shares).sum() for edge in edges)


def smooth(network: Network) -> Network:
    """Without kinks: at those a finite difference of gradients is far from any derivative."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(3, child.stride, padding=1))
    return network


@pytest.fixture(scope="module", autouse=True)
def smooth_sources():
    """The ReLU that the edges of a source share is no module for `smooth` to replace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "positive", property(lambda source: F.silu(source.x)))
        yield


class Twins:
    """A supernet in float64 in the midst of training, and a copy of it to try things on."""

    def __init__(self, trained_steps: int) -> None:
        torch.manual_seed(0)
        self.network = smooth(Network(4, 7, 3).double())
        for alpha in self.network.arch_parameters():
            alpha.data.normal_()
        self.network.set_states(PARTLY, PARTLY)
        self.copy = copy.deepcopy(self.network)
        self.architect = Architect(self.network, ARGS, FULL)
        self.optimizer, self.copy_optimizer = (
            build_optimizer(network.weight_parameters(), ARGS)
            for network in (self.network, self.copy)
        )
        for seed in range(10, 10 + trained_steps):
            plain_loss(self.network, draw_batch(seed)).backward()
            self.optimizer.step()
            self.network.zero_grad()

    def reset(self) -> Network:
        """The copy, equal to the network again."""
        with torch.no_grad():
            for mine, its in zip(self.copy.parameters(), self.network.parameters(), strict=True):
                mine.copy_(its)
        self.copy_optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        self.copy.zero_grad()
        return self.copy

    def step_ahead(self) -> None:
        """Step the weights of the copy along the training batch."""
        plain_loss(self.copy, TRAIN).backward()
        self.copy_optimizer.step()
        self.copy.zero_grad()

    def first_order(self) -> list[Tensor]:
        return self.architect.first_order_gradient(VALID)

    def second_order(self) -> list[Tensor]:
        return self.architect.second_order_gradient(TRAIN, VALID, self.optimizer)


@pytest.fixture(scope="module")
def trained() -> Twins:
    return Twins(trained_steps=2)


def open_alphas(network: Network) -> list[nn.Parameter]:
    return [alpha for alpha in network.arch_parameters() if alpha.requires_grad]


def relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    a, b = torch.cat(list(found)), torch.cat(list(expected))
    return ((a - b).norm() / b.norm()).item()


def test_first_order_gradient_is_of_loss_and_penalty(trained):
    twin = trained.reset()
    (plain_loss(twin, VALID) + plain_penalty(twin)).backward()
    found = trained.first_order()
    assert len(found) == 6
    assert relative(found, [alpha.grad for alpha in open_alphas(twin)]) < 1e-12


def test_second_order_gradient_is_formula_of_darts(trained):
    twin = trained.reset()
    trained.step_ahead()
    (plain_loss(twin, VALID) + plain_penalty(twin)).backward()
    direct = [alpha.grad.clone() for alpha in open_alphas(twin)]
    # Primitives of decided edges that do not compute have no gradient.
    v = [0.0 * p if p.grad is None else p.grad.clone() for p in twin.weight_parameters()]
    radius = 0.01 / sum((g**2).sum() for g in v) ** 0.5

    def train_gradient(sign: int) -> list[Tensor]:
        trained.reset()
        with torch.no_grad():
            for weight, g in zip(twin.weight_parameters(), v, strict=True):
                weight += sign * radius * g
        plain_loss(twin, TRAIN).backward()
        return [alpha.grad.clone() for alpha in open_alphas(twin)]

    expected = [
        first - LEARNING_RATE * (plus - minus) / (2 * radius)
        for first, plus, minus in zip(direct, train_gradient(1), train_gradient(-1), strict=True)
    ]
    assert relative(trained.second_order(), expected) < 1e-8


@pytest.mark.parametrize("steps", [0, 2], ids=["no momentum yet", "momentum"])
def test_second_order_gradient_is_of_bilevel_objective(steps, trained, monkeypatch):
    """Central differences of alpha -> L_valid(w'(alpha), alpha), w' being a step of torch's SGD."""
    twins = trained if steps else Twins(0)
    # It would hide the rest.
    monkeypatch.setattr(twins.architect, "penalty", lambda: torch.zeros(()))

    def objective(edge: int, primitive: int, move: float) -> float:
        twin = twins.reset()
        with torch.no_grad():
            open_alphas(twin)[edge][primitive] += move
        twins.step_ahead()
        return plain_loss(twin, VALID).item()

    places = [(0, 4), (1, 8), (2, 10), (3, 1), (4, 6), (5, 0)]
    expected = torch.tensor(
        [(objective(*place, 1e-5) - objective(*place, -1e-5)) / 2e-5 for place in places],
        dtype=torch.float64,
    )
    found, direct = (
        torch.stack([gradient[edge][primitive] for edge, primitive in places])
        for gradient in (twins.second_order(), twins.first_order())
    )
    assert relative([found], [expected]) < 2e-3
    # So the comparison would tell a gradient without its second term.
    assert relative([direct], [expected]) > 0.3


def test_difference_runs_in_full_precision_under_bfloat16():
    network = Network(4, 7, 3)
    network.set_states(PARTLY, PARTLY)
    seen = []
    network.classifier.register_forward_hook(lambda _m, _x, out: seen.append(out.dtype))
    train, valid = ((images.float(), labels) for images, labels in (TRAIN, VALID))
    architect = Architect(network, ARGS, autocast(torch.device("cpu"), "bf16"))
    optimizer = build_optimizer(network.weight_parameters(), ARGS)
    found = architect.second_order_gradient(train, valid, optimizer)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found)


@pytest.mark.parametrize("unrolled", [False, True])
def test_step_changes_open_alphas_only(unrolled, trained):
    network, optimizer = copy.deepcopy((trained.network, trained.optimizer))
    architect = Architect(network, ARGS, FULL)
    architect.unrolled = unrolled
    before = copy.deepcopy(network.state_dict())
    momentum = copy.deepcopy(optimizer.state_dict()["state"])
    assert momentum
    architect.step(TRAIN, VALID, optimizer)
    after = network.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"alphas_{kind}.{edge}"
        for kind in ("normal", "reduce")
        for edge, state in enumerate(PARTLY)
        if state == OPEN
    }
    for index, state in optimizer.state_dict()["state"].items():
        old = momentum[index]["momentum_buffer"]
        assert old is state["momentum_buffer"] or torch.equal(state["momentum_buffer"], old)
    assert all(p.grad is None for p in network.parameters())
    # The next step updates the statistics again, and trains all weights.
    assert all(p.requires_grad for p in network.weight_parameters())
    network(VALID[0])
    assert network.stem[1].num_batches_tracked == before["stem.1.num_batches_tracked"] + 1


def test_step_is_adam_and_skips_frozen_alphas():
    torch.manual_seed(0)
    network = Network(4, 7, 3)
    architect = Architect(network, ARGS, FULL)
    optimizer = build_optimizer(network.weight_parameters(), ARGS)
    alphas = network.arch_parameters()
    gradients = [torch.randn(11) for _ in alphas]
    architect.first_order_gradient = lambda _: [g for g, a in zip(gradients, alphas, strict=True)
                                                if a.requires_grad]  # fmt: skip
    before = [alpha.detach().clone() for alpha in alphas]
    architect.step(TRAIN, VALID, optimizer)
    for alpha, old, gradient in zip(alphas, before, gradients, strict=True):
        # The first step of Adam is the learning rate along each sign, weight decay included.
        torch.testing.assert_close(alpha.detach(), old - 3e-4 * (gradient + 1e-3 * old).sign())
    # Neither weight decay nor earlier momentum moves an alpha that is frozen.
    for states in (PARTLY, DECIDED):
        network.set_states(states, states)
        before = [alpha.detach().clone() for alpha in alphas]
        architect.step(TRAIN, VALID, optimizer)
        moved = [not alpha.equal(old) for alpha, old in zip(alphas, before, strict=True)]
        assert moved == [state == OPEN for state in [*states, *states]]


def test_complexity_is_half_cost_share_of_squared_alphas():
    alphas = [torch.zeros(11, dtype=torch.float64, requires_grad=True) for _ in range(14)]
    with torch.no_grad():
        alphas[0][4] = 2.0  # sep_conv_3x3
        alphas[0][3] = 9.0  # skip_connect costs nothing
        alphas[5][10] = -3.0  # conv_3x3
        alphas[6][10] = 5.0  # on an edge that is not asked for
    total = 504 + 888 + 252 + 444 + 126 + 144 + 1296
    found = complexity(alphas, [0, 5])
    assert found.item() == pytest.approx(0.5 * (4.0 * 504 + 9.0 * 1296) / total, rel=1e-12)
    found.backward()
    assert alphas[0].grad.tolist() == pytest.approx([0] * 4 + [2.0 * 504 / total] + [0] * 6)
    assert alphas[6].grad is None
    assert complexity(alphas, []).item() == 0.0


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_penalty_is_of_open_normal_edges_or_first(protocol):
    network = Network(4, 7, 3)
    args = parse(search.build_parser(), ["--protocol", protocol])
    architect = Architect(network, args, FULL)
    for first in (OPEN, 4):
        states = [first, 4, OPEN, PRUNED, *[OPEN] * 10]
        network.set_states(states, [OPEN] * 14)
        opened = [edge for edge, state in enumerate(states) if state == OPEN]
        penalised = opened if protocol == "clean" else [edge for edge in opened if edge == 0]
        network.zero_grad()
        penalty = architect.penalty()
        if penalised:
            penalty.backward()
        assert penalty.item() == complexity(network.alphas_normal, penalised).item()
        found = [e for e, alpha in enumerate(network.arch_parameters()) if alpha.grad is not None]
        assert found == penalised
