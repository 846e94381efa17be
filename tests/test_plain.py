"""Ours against the plain version: outputs and every gradient, in float64 and in float32.

In float64 they agree to its rounding. In float32 two ways of adding up differ by 1e-6 or so, which
a ReLU or a maximum turns into a jump of the gradient where its input is that close to a tie. So
there the batch is one that no input of either, in float64, brings near one.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from test_model_search import STATES
from torch import Tensor, nn
from torch.nn import functional as F

import architect
import model_search
from benchmarks.plain import PlainNetwork, PlainSupernet
from engine import autocast
from genotypes import NAMED
from model import Network
from operations import ConvBlock, DepthwiseConv2d, Ghost

NEAR = 5e-6  # to a tie, in standard deviations of what is compared
WIDTH, CELLS, BATCH = 4, 3, 8


def supernet(states: str, seed: int) -> model_search.Network:
    """With alphas far enough apart for every one to matter."""
    torch.manual_seed(seed)
    network = model_search.Network(WIDTH, 7, CELLS)
    for alpha in network.arch_parameters():
        alpha.data.normal_()
    network.set_states(*STATES[states])
    return network.train()


def fixed(seed: int, auxiliary: bool = False, name: str = "Auto_FERNet") -> Network:
    torch.manual_seed(seed)
    return Network(WIDTH, 7, CELLS, auxiliary, NAMED[name]).train()


def plain(network: nn.Module) -> nn.Module:
    kind = PlainNetwork if isinstance(network, Network) else PlainSupernet
    return kind(network).train()


def batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(BATCH, 1, size, size, generator=generator, dtype=torch.float64)
    return images, torch.arange(BATCH) % 7


def nearest_tie(network: nn.Module, images: Tensor) -> float:
    """The least distance of a ReLU's input to zero, or of a window's two greatest values."""
    found = []

    def watch(module: nn.Module, inputs: tuple[Tensor], _out: Tensor) -> None:
        (x,) = inputs
        if isinstance(module, nn.ReLU):
            distances = x.abs()
        else:
            padded = F.pad(x, (1, 1, 1, 1), value=float("-inf"))
            windows = padded.unfold(2, 3, module.stride).unfold(3, 3, module.stride).flatten(4)
            greatest, second = windows.topk(2, dim=4).values.unbind(4)
            distances = greatest - second
        found.append(distances.min() / x.std())

    hooks = [
        module.register_forward_hook(watch)
        for module in network.modules()
        if isinstance(module, nn.ReLU | nn.MaxPool2d)
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return float(min(found))


def outputs_and_gradients(network: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """By name: the logits, those of an auxiliary head, and the gradient of every parameter."""
    images, labels = batch
    logits = network(images)
    logits = logits if isinstance(logits, tuple) else (logits,)
    found = {f"logits {i}": each for i, each in enumerate(logits) if each is not None}
    network.zero_grad()
    sum(F.cross_entropy(each, labels) for each in found.values()).backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            found[name.removeprefix("network.")] = parameter.grad
    return {name: tensor.detach() for name, tensor in found.items()}


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, in norm."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def compare(
    ours: dict[str, Tensor], plain: dict[str, Tensor], *, whole: float, each: float
) -> None:
    """Hold the logits and all gradients as one vector to `whole`, every gradient to `each`."""
    assert ours.keys() == plain.keys()
    gradients = [name for name in plain if not name.startswith("logits")]
    for name in plain:
        limit = each if name in gradients else whole
        assert distance(ours[name], plain[name]) <= limit, name
    first, second = (torch.cat([d[name].flatten() for name in gradients]) for d in (ours, plain))
    assert distance(first, second) <= whole


CASES = {
    "fixed": fixed,
    **{name: lambda seed, name=name: supernet(name, seed) for name in STATES},
}


@pytest.mark.parametrize("case", CASES)
def test_in_float32_outputs_and_gradients_are_the_plain_ones_within_1e_5(case):
    for seed in itertools.count():
        network, (images, labels) = CASES[case](seed), batch(seed)
        if nearest_tie(plain(network).double(), images) > NEAR:
            break
    single = images.float(), labels
    # A gradient that nearly cancels, of a bias before a batch norm, say, has rounding of its own.
    compare(
        outputs_and_gradients(network, single),
        outputs_and_gradients(plain(network), single),
        whole=1e-5,
        each=3e-5,
    )


EXACT_CASES = {
    **CASES,
    **{name: lambda seed, name=name: fixed(seed, name=name) for name in NAMED},
    "auxiliary": lambda seed: fixed(seed, auxiliary=True),
}


@pytest.mark.parametrize("case", EXACT_CASES)
def test_in_float64_outputs_and_every_gradient_are_the_plain_ones(case):
    network = EXACT_CASES[case](0).double()
    # At 12 the last cells see an odd size; the auxiliary head needs 32.
    images = batch(0, size=32 if case == "auxiliary" else 12)
    expected = outputs_and_gradients(plain(network), images)
    assert ("logits 1" in expected) == (case == "auxiliary")
    compare(outputs_and_gradients(network, images), expected, whole=1e-11, each=1e-10)


@pytest.mark.parametrize("states", ["open", "half decided"])
def test_with_the_weights_held_the_alphas_get_the_plain_gradient(states):
    network = supernet(states, 0).double()
    images, labels = batch(1)
    yardstick = plain(network)
    F.cross_entropy(yardstick(images), labels).backward()
    expected = [a.grad for a in yardstick.network.arch_parameters() if a.requires_grad]

    found = architect.first_order_gradient(
        network,
        (images, labels),
        penalty=lambda: torch.zeros((), dtype=torch.float64),
        precision=autocast(images.device, "off"),
    )
    assert len(found) == len(expected) > 0
    for ours, plains in zip(found, expected, strict=True):
        assert distance(ours, plains) < 1e-10
    assert all(weight.grad is None for weight in network.weight_parameters())


def test_held_takes_gradients_away_for_a_while_and_gives_back_those_that_were_there():
    taking, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    with architect.held([taking, frozen]):
        assert not taking.requires_grad
        assert not frozen.requires_grad
    assert taking.requires_grad
    assert not frozen.requires_grad
    with pytest.raises(ZeroDivisionError), architect.held([taking]):
        _ = 1 / 0
    assert taking.requires_grad


def test_the_plain_version_has_the_same_weights_and_none_of_our_modules():
    for network, kind in (
        (fixed(0, auxiliary=True), PlainNetwork),
        (supernet("open", 0), PlainSupernet),
    ):
        copied = kind(network)
        assert list(copied.network.state_dict()) == list(network.state_dict())
        ours = (ConvBlock, DepthwiseConv2d, Ghost)
        assert any(isinstance(module, ours) for module in network.modules())
        assert not any(isinstance(module, ours) for module in copied.modules())
        # Of its own: a step of one must not move the other.
        pairs = zip(network.parameters(), copied.parameters(), strict=True)
        assert all(a.equal(b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
