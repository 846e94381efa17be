"""The step on the alphas, against the same formulas written plainly and against the objective."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architect import (
    complexity,
    first_order_gradient,
    penalised_edges,
    second_order_gradient,
    step_alphas,
)
from model_search import OPEN, PRUNED, Network, Source

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 3e-2
Batch = tuple[Tensor, Tensor]
FULL = torch.autocast("cpu", enabled=False)
# Two open edges in each kind of cell keep the networks small; one node of each is undecided.
PARTLY = [4, 1, OPEN, PRUNED, 10, 7, 9, PRUNED, PRUNED, OPEN, 8, PRUNED, PRUNED, OPEN]


def draw_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(7, (6,), generator=generator)


TRAIN, VALID = draw_batch(1), draw_batch(2)


def plain_loss(network: Network, batch: Batch) -> Tensor:
    return F.cross_entropy(network(batch[0]), batch[1])


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
    """A supernet in float64 in the midst of training, and a double of it to try things on."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = smooth(Network(4, 7, 3).double())
        for alpha in self.network.arch_parameters():
            alpha.data.normal_()
        self.network.set_states(PARTLY, PARTLY)
        self.double = copy.deepcopy(self.network)
        self.optimizer, self.double_optimizer = (
            torch.optim.SGD(
                network.weight_parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
            )
            for network in (self.network, self.double)
        )

    def train(self, seed: int) -> None:
        plain_loss(self.network, draw_batch(seed)).backward()
        self.optimizer.step()
        self.network.zero_grad()

    def reset(self) -> Network:
        """The double, equal to the network again."""
        with torch.no_grad():
            for mine, its in zip(self.double.parameters(), self.network.parameters(), strict=True):
                mine.copy_(its)
        self.double_optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        self.double.zero_grad()
        return self.double

    def step_ahead(self) -> None:
        """The double after one step of its own on the training batch."""
        plain_loss(self.double, TRAIN).backward()
        self.double_optimizer.step()
        self.double.zero_grad()

    def momentum(self) -> list[Tensor | None]:
        state = self.optimizer.state
        return [
            state[p].get("momentum_buffer") if p in state else None
            for p in self.network.weight_parameters()
        ]

    def second_order(self, penalty: Callable[[], Tensor]) -> list[Tensor]:
        return second_order_gradient(
            self.network,
            TRAIN,
            VALID,
            penalty=penalty,
            precision=FULL,
            learning_rate=LEARNING_RATE,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            momentum_buffers=self.momentum(),
        )


@pytest.fixture(scope="module")
def fresh() -> Twins:
    """Before the first step: no momentum."""
    return Twins()


@pytest.fixture(scope="module")
def trained() -> Twins:
    twins = Twins()
    twins.train(10)
    twins.train(11)
    return twins


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


# --- gradients


def test_the_first_order_gradient_is_that_of_the_validation_loss_and_the_penalty(trained):
    network = trained.network
    found = first_order_gradient(network, VALID, penalty=penalty_of(network), precision=FULL)
    double = trained.reset()
    (plain_loss(double, VALID) + penalty_of(double)()).backward()
    assert len(found) == 6
    assert relative(found, [alpha.grad for alpha in open_alphas(double)]) < 1e-12


def test_the_second_order_gradient_is_the_formula_of_darts(trained):
    found = trained.second_order(penalty_of(trained.network))

    double = trained.reset()
    trained.step_ahead()
    (plain_loss(double, VALID) + penalty_of(double)()).backward()
    direct = [alpha.grad.clone() for alpha in open_alphas(double)]
    # Primitives of decided edges that do not compute have no gradient.
    v = [0.0 * p if p.grad is None else p.grad.clone() for p in double.weight_parameters()]
    radius = 0.01 / sum((g**2).sum() for g in v) ** 0.5

    def train_gradient(sign: int) -> list[Tensor]:
        trained.reset()
        with torch.no_grad():
            for weight, g in zip(double.weight_parameters(), v, strict=True):
                weight += sign * radius * g
        plain_loss(double, TRAIN).backward()
        return [alpha.grad.clone() for alpha in open_alphas(double)]

    expected = [
        first - LEARNING_RATE * (plus - minus) / (2 * radius)
        for first, plus, minus in zip(direct, train_gradient(1), train_gradient(-1), strict=True)
    ]
    assert len(found) == 6
    assert relative(found, expected) < 1e-8


# Without momentum and with it.
@pytest.mark.parametrize("stage", ["fresh", "trained"])
def test_the_second_order_gradient_is_that_of_the_bilevel_objective(stage, request):
    """Central differences of alpha -> L_valid(w'(alpha), alpha), w' being a step of torch's SGD."""
    twins = request.getfixturevalue(stage)

    def objective(edge: int, primitive: int, move: float) -> float:
        double = twins.reset()
        with torch.no_grad():
            open_alphas(double)[edge][primitive] += move
        twins.step_ahead()
        return plain_loss(double, VALID).item()

    places = [(0, 4), (1, 8), (2, 10), (3, 1), (4, 6), (5, 0)]
    expected = torch.tensor(
        [(objective(*place, 1e-5) - objective(*place, -1e-5)) / 2e-5 for place in places]
    )
    first_order = first_order_gradient(twins.network, VALID, penalty=no_penalty, precision=FULL)
    found, direct = (
        torch.stack([gradient[edge][primitive] for edge, primitive in places]).float()
        for gradient in (twins.second_order(no_penalty), first_order)
    )
    assert relative([found], [expected]) < 2e-3
    # The comparison would tell a gradient without its second term.
    assert relative([direct], [expected]) > 0.3


def test_the_passes_of_the_difference_run_in_full_precision_under_bfloat16():
    network = Network(4, 7, 3)
    network.set_states(PARTLY, PARTLY)
    seen = []
    network.classifier.register_forward_hook(lambda _m, _x, out: seen.append(out.dtype))
    train, valid = ((images.float(), labels) for images, labels in (TRAIN, VALID))
    half = torch.autocast("cpu", dtype=torch.bfloat16)
    found = second_order_gradient(
        network,
        train,
        valid,
        penalty=lambda: torch.zeros(()),
        precision=half,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        momentum_buffers=[None] * len(network.weight_parameters()),
    )
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found)


def test_a_search_without_open_edges_has_no_gradient(trained):
    double = trained.reset()
    states = [1, 1, 1, 1, PRUNED, 1, 1, PRUNED, PRUNED, 1, 1, PRUNED, PRUNED, PRUNED]
    double.set_states(states, states)
    assert first_order_gradient(double, VALID, penalty=no_penalty, precision=FULL) == []
    double.set_states(PARTLY, PARTLY)


# --- the step


def adam(network: Network) -> torch.optim.Adam:
    return torch.optim.Adam(network.arch_parameters(), 3e-4, (0.5, 0.999), weight_decay=1e-3)


@pytest.mark.parametrize("unrolled", [False, True])
def test_the_step_changes_open_alphas_and_nothing_else(unrolled, trained):
    network = trained.network
    before = copy.deepcopy(network.state_dict())
    momentum = copy.deepcopy(trained.momentum())
    gradients = (
        trained.second_order(no_penalty)
        if unrolled
        else first_order_gradient(network, VALID, penalty=no_penalty, precision=FULL)
    )
    step_alphas(network, adam(network), gradients)
    opened = {
        f"alphas_{kind}.{edge}"
        for kind in ("normal", "reduce")
        for edge, state in enumerate(PARTLY)
        if state == OPEN
    }
    after = network.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == opened
    for buffer, old in zip(trained.momentum(), momentum, strict=True):
        assert (buffer is None and old is None) or torch.equal(buffer, old)
    assert any(old is not None for old in momentum)
    assert all(p.grad is None for p in network.parameters())
    # Statistics are kept for the step alone.
    network(VALID[0])
    assert network.stem[1].num_batches_tracked == before["stem.1.num_batches_tracked"] + 1


def test_the_step_is_that_of_adam_along_the_gradients():
    torch.manual_seed(0)
    network = Network(4, 7, 3)
    before = [alpha.detach().clone() for alpha in network.arch_parameters()]
    gradients = [torch.randn(11) for _ in before]
    step_alphas(network, adam(network), gradients)
    for alpha, old, gradient in zip(network.arch_parameters(), before, gradients, strict=True):
        # The first step of Adam is the learning rate along each sign, weight decay included.
        torch.testing.assert_close(alpha.detach(), old - 3e-4 * (gradient + 1e-3 * old).sign())


def test_frozen_alphas_stay_despite_weight_decay_and_earlier_momentum():
    network = Network(4, 7, 3)
    optimizer = adam(network)
    for _ in range(3):
        step_alphas(network, optimizer, [torch.ones(11) for _ in range(28)])
    network.set_states(PARTLY, PARTLY)
    before = [alpha.detach().clone() for alpha in network.arch_parameters()]
    for _ in range(3):
        step_alphas(network, optimizer, [torch.ones(11) for _ in range(6)])
    moved = [
        not torch.equal(alpha, old)
        for alpha, old in zip(network.arch_parameters(), before, strict=True)
    ]
    assert moved == [state == OPEN for state in [*PARTLY, *PARTLY]]
