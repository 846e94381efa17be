"""The supernet: its parts, names and edge states; test_plain.py compares what it computes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model_search import EDGES, OPEN, POOLS, PRUNED, Cell, MixedOp, Network

LAYERS = 4
REDUCTIONS = (1, 2)

ALL_OPEN = [OPEN] * 14
# The two edges of the first node, the three of the second, four, five.
HALF_NORMAL = [OPEN, 7, 4, 0, 8, OPEN, OPEN, OPEN, OPEN, 0, 1, 0, 3, 0]
HALF_REDUCE = [3, OPEN, OPEN, 2, OPEN, 9, 10, 0, 0, OPEN, OPEN, 6, OPEN, OPEN]
STATES = {
    "open": (ALL_OPEN, ALL_OPEN),
    "half decided": (HALF_NORMAL, HALF_REDUCE),
}


def supernet(states: str = "open", spread: float = 1.0, partial: int = 1) -> Network:
    """In float64, with alphas far enough apart for every one to matter."""
    torch.manual_seed(0)
    network = Network(4 * partial, 7, LAYERS, partial).double()
    for alpha in network.arch_parameters():
        alpha.data.normal_(std=spread)
    network.set_states(*STATES[states])
    return network


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.tensor([0, 1, 2, 3, 4, 6])


def test_new_supernet():
    torch.manual_seed(0)
    network = Network(4, 7, 3)
    for cell in network.cells:
        assert isinstance(cell, Cell)
        assert len(cell._ops) == 14
        assert all(isinstance(op, MixedOp) and len(op._ops) == 11 for op in cell._ops)
    assert EDGES == (
        (0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3),
        (3, 0), (3, 1), (3, 2), (3, 3), (3, 4),
    )  # fmt: skip
    for alphas in (network.alphas_normal, network.alphas_reduce):
        assert [tuple(alpha.shape) for alpha in alphas] == [(11,)] * 14
    drawn = 1e3 * torch.cat(list(network.arch_parameters())).detach()
    assert abs(drawn.mean()) < 0.25  # 308 values: four standard errors
    assert 0.85 < drawn.std() < 1.15
    assert network.states == {"normal": ALL_OPEN, "reduce": ALL_OPEN}
    assert network(torch.rand(2, 1, 44, 44)).shape == (2, 7)
    named = dict(network.named_parameters())
    arch = [*network.alphas_normal, *network.alphas_reduce]
    assert list(map(id, network.arch_parameters())) == list(map(id, arch))
    others = [p for name, p in named.items() if not name.startswith("alphas_")]
    assert list(map(id, network.weight_parameters())) == list(map(id, others))
    assert len(arch) + len(others) == len(named)
    norms = torch.nn.BatchNorm2d
    affine = {n: m.affine for n, m in network.named_modules() if isinstance(m, norms)}
    assert affine.pop("stem.1")
    assert len(affine) > 14 * 10 * 3
    assert not any(affine.values())


def computed(network: Network) -> set[tuple[int, int, int]]:
    """(cell, edge, primitive) of the primitives whose batch norms saw the last batch."""
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
    network(batch()[0])
    places = (
        name.split(".")
        for name, tensor in network.state_dict().items()
        if "._ops." in name and name.endswith("num_batches_tracked") and tensor
    )
    return {(int(place[1]), int(place[3]), int(place[5])) for place in places}


def test_edges_compute_what_their_state_says():
    found = computed(supernet("half decided"))
    expected = set()
    for index in range(LAYERS):
        reduction = index in REDUCTIONS
        for edge, state in enumerate(HALF_REDUCE if reduction else HALF_NORMAL):
            for k in range(11):
                strided = reduction and EDGES[edge][1] < 2
                has_norm = k > 0 and (k != 3 or strided)
                if has_norm and state != PRUNED and state in (OPEN, k):
                    expected.add((index, edge, k))
                    if k in POOLS:  # which the edges of a source share
                        expected |= {
                            (index, other, k)
                            for other, (_, source) in enumerate(EDGES)
                            if source == EDGES[edge][1]
                        }
    assert found == expected


def test_edges_of_a_source_share_pools():
    network = supernet()
    computed(network)
    for cell in network.cells:
        for (_, source), op in zip(EDGES, cell._ops, strict=True):
            for k in POOLS:
                assert op._ops[k] is cell._ops[EDGES.index((max(source - 1, 0), source))]._ops[k]
                assert op._ops[k][1].num_batches_tracked == 1


def test_only_open_alphas_are_trained():
    network = supernet()
    F.cross_entropy(network(batch()[0]), batch()[1]).backward()
    network.set_states(HALF_NORMAL, HALF_REDUCE)
    assert network.states == {"normal": HALF_NORMAL, "reduce": HALF_REDUCE}
    states = [*HALF_NORMAL, *HALF_REDUCE]
    assert [p.requires_grad for p in network.arch_parameters()] == [s == OPEN for s in states]
    # What an earlier pass left must not move a frozen alpha in the next step.
    assert all(p.grad is None for p in network.arch_parameters())
    states = list(ALL_OPEN)
    network.set_states(states, states)
    assert all(p.requires_grad for p in network.arch_parameters())
    states[0] = PRUNED  # a copy was taken
    assert network.states == {"normal": ALL_OPEN, "reduce": ALL_OPEN}


@pytest.mark.parametrize("partial", [1, 2])
def test_description_state_dict_and_states_restore_network(partial):
    network = supernet("half decided", partial=partial)
    network(batch()[0])
    other = Network(**network.description).double()
    other.load_state_dict(network.state_dict())
    other.set_states(**network.states)
    assert torch.equal(other.eval()(batch()[0]), network.eval()(batch()[0]))


def test_parameter_names():
    network = Network(4, 7, LAYERS)
    names = set(network.state_dict())
    for index, edge in ((0, 0), (1, 13), (3, 5)):
        prefix = f"cells.{index}._ops.{edge}._ops"
        pools = {
            name.removeprefix(prefix)
            for name in names
            if name.startswith((f"{prefix}.1.", f"{prefix}.2."))
        }
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        assert pools == {f".{pool}.1.{buffer}" for pool in (1, 2) for buffer in buffers}
        assert f"{prefix}.4.op.7.running_mean" in names  # sep_conv_3x3: its second norm
        assert f"{prefix}.8.primary_conv.0.weight" in names
        assert f"{prefix}.10.op.1.weight" in names
    assert "cells.1._ops.0._ops.3.conv_1.weight" in names  # the skip of a reduction
    assert not any(n.startswith("cells.0._ops.0._ops.3.") for n in names)  # an identity
    assert {"cells.1.preprocess0.op.1.weight", "cells.2.preprocess0.conv_2.weight"} <= names
    assert {"stem.0.weight", "stem.1.bias", "classifier.weight", "classifier.bias"} <= names


def test_pruned_edges_add_nothing():
    network = supernet("half decided")
    images, _ = batch()
    before = network(images)
    for index, cell in enumerate(network.cells):
        reduction = index in REDUCTIONS
        for edge, state in enumerate(HALF_REDUCE if reduction else HALF_NORMAL):
            if state == PRUNED:
                for parameter in cell._ops[edge].parameters():
                    parameter.data.fill_(float("nan"))
    for alphas, states in (
        (network.alphas_normal, HALF_NORMAL), (network.alphas_reduce, HALF_REDUCE),
    ):  # fmt: skip
        for alpha, state in zip(alphas, states, strict=True):
            if state != OPEN:
                alpha.data.fill_(float("nan"))
    assert torch.equal(network(images), before)
