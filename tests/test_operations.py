"""Primitives against plain functions, their table, and drop-path."""

import itertools
import sys

import pytest
import torch
from runs import ROOT, run
from torch import nn

from benchmarks.plain import plain_primitive, reduction
from genotypes import EXTRA_PRIMITIVES, PRIMITIVES, Genotype
from kernels.layouts import ConcatNodes, EvenOddPlaces, concat_nodes, even_odd_places
from model import Cell
from operations import PRIMITIVE_TABLE, FactorizedReduce, build_primitive, drop_path

STRIDES = (1, 2)
# Primitive, stride, channels, size; the factorised reduction needs even channels and sizes.
CASES = [
    (name, stride, channels, size)
    for name, stride, channels, size in itertools.product(PRIMITIVE_TABLE, STRIDES, (5, 6), (7, 8))
    if not (name == "skip_connect" and stride == 2 and (channels, size) != (6, 8))
]
# At 12 channels, counted by hand: weights of convolutions, parameters of affine batch norms.
SIZES = {
    "none": (0, 0),
    "max_pool_3x3": (0, 0),
    "avg_pool_3x3": (0, 0),
    "skip_connect": (0, 0),
    "sep_conv_3x3": (504, 48),
    "sep_conv_5x5": (888, 48),
    "sep_conv_7x7": (2 * (12 * 49 + 144), 48),
    "dil_conv_3x3": (252, 24),
    "dil_conv_5x5": (444, 24),
    "ghost": (126, 24),
    "conv_1x1": (144, 24),
    "conv_3x3": (1296, 24),
    "conv_7x1_1x7": (144 * 7 * 2, 24),
}
ORDER = (
    "none max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 "
    "dil_conv_5x5 ghost conv_1x1 conv_3x3 sep_conv_7x7 conv_7x1_1x7"
)
# Run in a process of its own, as other modules read the table when they are imported.
NEW_PRIMITIVE = """
import operations, torch
operations.PRIMITIVE_TABLE["sep_conv_1x1"] = operations.Primitive(
    lambda channels, stride, affine: operations.SepConv(channels, 1, stride, affine), cost=312)
from architect import complexity
from common.plots import draw_alphas, draw_cell
from genotypes import parse_genotype
from model import Network
import model_search
edges = "[('sep_conv_1x1', 0), ('sep_conv_1x1', 1)]"
genotype = parse_genotype(f"Genotype({edges}, [2], {edges}, [2])")
Network(4, 7, 3, False, genotype)(torch.rand(2, 1, 16, 16))[0].sum().backward()
supernet = model_search.Network(4, 7, 3)
supernet(torch.rand(2, 1, 16, 16)).sum().backward()
assert supernet.alphas_normal[0].grad[11] != 0
torch.testing.assert_close(complexity([torch.eye(12)[11]], [0]).item(), 0.5 * 312 / (3654 + 312))
draw_cell(genotype.normal, genotype.normal_concat, "cell.png", "")
draw_alphas(torch.full((14, 12), 1 / 12).numpy(), "alphas.png", "", [11] * 14)
"""


def images(samples: int, channels: int, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(samples, channels, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name, stride, channels, size", CASES)
def test_primitive_matches_plain_function(name, stride, channels, size):
    torch.manual_seed(0)
    op = build_primitive(name, channels, stride, affine=False).double()
    x = images(3, channels, size)
    out = op(x)
    assert out.shape == (3, channels, -(-size // stride), -(-size // stride))
    torch.testing.assert_close(out, plain_primitive(name, op, x, stride))


@pytest.mark.parametrize("name", PRIMITIVE_TABLE)
def test_parameters_and_cost(name):
    assert [*PRIMITIVES, *EXTRA_PRIMITIVES] == ORDER.split()
    weights, norms = SIZES[name]
    assert PRIMITIVE_TABLE[name].cost == weights
    for stride, affine in itertools.product(STRIDES, (False, True)):
        if name == "skip_connect" and stride == 2:
            weights, norms = 2 * 12 * 6, 24
        op = build_primitive(name, 12, stride, affine)
        assert sum(p.numel() for p in op.parameters()) == weights + norms * affine
        assert all(m.bias is None for m in op.modules() if isinstance(m, nn.Conv2d))
        assert all(m.affine == affine for m in op.modules() if isinstance(m, nn.BatchNorm2d))


def test_new_primitive_needs_one_entry(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}){NEW_PRIMITIVE}"
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.png"))) == 2


@pytest.mark.parametrize("channels", [(6, 4), (4, 10)])
def test_factorized_reduce_joins_even_and_odd_pixels(channels):
    torch.manual_seed(0)
    op = FactorizedReduce(*channels, affine=False).double()
    x = images(3, channels[0])
    torch.testing.assert_close(op(x), reduction(x, op))


def test_custom_functions_match_torch(monkeypatch):
    x = images(2, 4).requires_grad_()
    even, odd = even_odd_places(x)
    both = concat_nodes([even, 2 * odd])
    assert "ConcatNodes" in type(both.grad_fn).__name__
    plain = torch.cat([x[:, :, ::2, ::2], 2 * x[:, :, 1::2, 1::2]], dim=1)
    torch.testing.assert_close(both, plain)
    weight = torch.rand_like(plain)
    found, expected = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (both, plain))
    torch.testing.assert_close(found, expected)
    monkeypatch.setattr(ConcatNodes, "apply", None)
    monkeypatch.setattr(EvenOddPlaces, "apply", None)
    with torch.no_grad():
        even, odd = even_odd_places(x)
        torch.testing.assert_close(concat_nodes([even, 2 * odd]), plain)


# --- drop-path


def test_drop_path_zeroes_whole_samples_and_scales_others():
    torch.manual_seed(0)
    x = images(200, 3, size=2)
    out = drop_path(x, 0.25)
    dropped = (out == 0.0).flatten(1).all(dim=1)
    assert 20 < dropped.sum() < 90
    torch.testing.assert_close(out[~dropped], x[~dropped] / 0.75)
    half = torch.ones(64, 2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    out = drop_path(half, 0.5)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert torch.equal(half.grad, out.detach())


def cell_of(primitive: str, reduction: bool = False) -> Cell:
    edges = ((primitive, 0), (primitive, 1))
    torch.manual_seed(0)
    return Cell(Genotype(edges, (2,), edges, (2,)), 4, 4, 4, reduction, False).double()


def test_edges_are_dropped_independently_per_sample():
    cell = cell_of("max_pool_3x3")
    first, second = images(400, 4), 3.0 - images(400, 4)
    a = plain_primitive("max_pool_3x3", None, cell.preprocess0(first), 1)
    b = plain_primitive("max_pool_3x3", None, cell.preprocess1(second), 1)
    out = 0.5 * cell(first.relu(), second.relu(), 0.5)
    sums = (torch.zeros_like(a), a, b, a + b)
    matches = torch.stack(
        [torch.isclose(out, kept, atol=1e-9).flatten(1).all(dim=1) for kept in sums]
    )
    assert (matches.sum(dim=0) == 1).all()
    assert (matches.sum(dim=1) > 60).all()  # a hundred each are expected


def test_only_identities_and_evaluation_drop_nothing():
    x = images(50, 4)
    cell = cell_of("skip_connect")
    torch.testing.assert_close(cell(x, x, 0.9), cell(x, x, 0.0))
    assert (cell_of("skip_connect", True)(x, x, 0.9) == 0.0).flatten(1).all(dim=1).sum() > 25
    cell = cell_of("conv_3x3")
    assert not torch.allclose(cell(x, x, 0.9), cell(x, x, 0.0))
    cell.eval()
    torch.testing.assert_close(cell(x, x, 0.9), cell(x, x, 0.0))
