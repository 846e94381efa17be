"""Our primitives and networks against the plain implementation: outputs and all gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import search
from architect import Architect
from benchmarks.plain import PlainNetwork, PlainSupernet
from genotypes import NAMED
from model import Network
from model_search import EDGES, OPEN, PRUNED
from model_search import Network as Supernet
from runtime.run import autocast

CPU = torch.device("cpu")
WIDTH, CELLS, BATCH = 4, 3, 8
# Each cell's edges: all open; some decided or pruned; all decided or pruned, by every primitive.
STATES = {
    "open": [OPEN] * len(EDGES),
    "half decided": [(OPEN, 1 + edge % 10, PRUNED, OPEN)[edge % 4] for edge in range(len(EDGES))],
    "decided": [1 + edge % 10 if edge % 3 else PRUNED for edge in range(len(EDGES))],
}


def supernet(states: str, partial: int = 1) -> Supernet:
    """With alphas far enough apart for each of them to matter."""
    torch.manual_seed(0)
    network = Supernet(WIDTH * partial, 7, CELLS, partial)
    for alpha in network.arch_parameters():
        alpha.data.normal_()
    network.set_states(STATES[states], STATES[states][::-1])
    return network.double().train()


def fixed(name: str = "Auto_FERNet", auxiliary: bool = False) -> Network:
    torch.manual_seed(0)
    return Network(WIDTH, 7, CELLS, auxiliary, NAMED[name]).double().train()


def plain(network: nn.Module) -> nn.Module:
    kind = PlainNetwork if isinstance(network, Network) else PlainSupernet
    return kind(network).train()


def batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 1, size, size, generator=generator, dtype=torch.float64)
    return images, torch.arange(BATCH) % 7


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


CASES = {
    **{name: partial(fixed, name) for name in NAMED},
    "auxiliary": partial(fixed, auxiliary=True),
    **{name: partial(supernet, name) for name in STATES},
    **{f"{name}, 1/{k} of the channels": partial(supernet, name, k)
       for name in STATES for k in (2, 4)},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_the_plain_ones(case: str) -> None:
    network = CASES[case]()
    # At 12 the last cells see an odd size; the auxiliary head needs 32.
    images = batch(32 if case == "auxiliary" else 12)
    expected = outputs_and_gradients(plain(network), images)
    found = outputs_and_gradients(network, images)
    assert ("logits 1" in expected) == (case == "auxiliary")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        distance = (found[name] - tensor).norm() / tensor.norm().clamp_min(1e-30)
        assert distance < 1e-9, name


@pytest.mark.parametrize("states", ["open", "half decided"])
def test_gradient_of_alphas_equals_the_plain_one(states: str) -> None:
    network = supernet(states)
    images, labels = batch(8)
    reference = plain(network)
    F.cross_entropy(reference(images), labels).backward()
    expected = [a.grad for a in reference.network.arch_parameters() if a.requires_grad]

    args = search.build_parser().parse_args([])
    architect = Architect(network, args, autocast(CPU, "off"))
    architect.penalty = lambda: torch.zeros((), dtype=torch.float64)  # type: ignore[method-assign]
    found = architect.first_order_gradient((images, labels))
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert all(weight.grad is None for weight in network.weight_parameters())


@pytest.mark.parametrize("network", [fixed(auxiliary=True), supernet("open")])
def test_plain_network_has_weights_of_its_own(network: nn.Module) -> None:
    copied = plain(network)
    assert list(copied.network.state_dict()) == list(network.state_dict())
    pairs = zip(network.parameters(), copied.parameters(), strict=True)
    assert all(a.equal(b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
