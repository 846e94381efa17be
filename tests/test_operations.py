"""Every primitive computes what its name says, and drop-path drops what it should."""

import itertools

import pytest
import torch
from plain_primitives import factorised_reduction, plain_primitive
from torch import nn

from genotypes import EXTRA_PRIMITIVES, PRIMITIVES, Genotype
from model import Cell
from operations import FactorizedReduce, build_primitive, drop_path

ALL = PRIMITIVES + EXTRA_PRIMITIVES
STRIDES = (1, 2)
# Primitive, stride, channels, size; the factorised reduction is for even channels and sizes alone.
CASES = [
    (name, stride, channels, size)
    for name, stride, channels, size in itertools.product(ALL, STRIDES, (5, 6), (7, 8))
    if not (name == "skip_connect" and stride == 2 and (channels, size) != (6, 8))
]

# At 12 channels, counted by hand: the weights of the convolutions, and what affine batch norms add.
SIZES = {
    "none": (0, 0),
    "max_pool_3x3": (0, 0),
    "avg_pool_3x3": (0, 0),
    "sep_conv_3x3": (2 * (12 * 9 + 144), 48),
    "sep_conv_5x5": (2 * (12 * 25 + 144), 48),
    "sep_conv_7x7": (2 * (12 * 49 + 144), 48),
    "dil_conv_3x3": (12 * 9 + 144, 24),
    "dil_conv_5x5": (12 * 25 + 144, 24),
    "ghost": (12 * 6 + 6 * 9, 24),
    "conv_1x1": (144, 24),
    "conv_3x3": (144 * 9, 24),
    "conv_7x1_1x7": (144 * 7 * 2, 24),
}


def images(samples: int, channels: int, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(samples, channels, size, size, generator=generator, dtype=torch.float64)


def test_the_searched_primitives_stand_in_the_order_that_stored_indices_refer_to():
    assert PRIMITIVES == (
        "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5",
        "dil_conv_3x3", "dil_conv_5x5", "ghost", "conv_1x1", "conv_3x3",
    )  # fmt: skip
    assert EXTRA_PRIMITIVES == ("sep_conv_7x7", "conv_7x1_1x7")


@pytest.mark.parametrize("name, stride, channels, size", CASES)
def test_a_primitive_keeps_its_channels_and_strides_its_size(name, stride, channels, size):
    op = build_primitive(name, channels, stride, affine=True)
    out = op(torch.randn(2, channels, size, size))
    assert out.shape == (2, channels, -(-size // stride), -(-size // stride))


@pytest.mark.parametrize("name, stride, channels, size", CASES)
def test_a_primitive_computes_what_the_plain_function_does(name, stride, channels, size):
    torch.manual_seed(0)
    op = build_primitive(name, channels, stride, affine=False).double()
    x = images(3, channels, size)
    torch.testing.assert_close(op(x), plain_primitive(name, list(op.parameters()), x, stride))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", ALL)
def test_a_primitive_has_the_parameters_counted_by_hand(name, stride, affine):
    sizes = {**SIZES, "skip_connect": (0, 0) if stride == 1 else (2 * 12 * 6, 24)}
    weights, norms = sizes[name]
    op = build_primitive(name, 12, stride, affine)
    assert sum(p.numel() for p in op.parameters()) == weights + norms * affine


@pytest.mark.parametrize("name", ALL)
def test_no_convolution_has_a_bias_and_every_norm_is_affine_when_asked(name):
    modules = [m for stride in STRIDES for m in build_primitive(name, 6, stride, True).modules()]
    assert all(m.bias is None for m in modules if isinstance(m, nn.Conv2d))
    assert all(m.affine for m in modules if isinstance(m, nn.BatchNorm2d))
    if "pool" not in name and name != "none":
        assert any(isinstance(m, nn.Conv2d) for m in modules)


def test_an_odd_ghost_rounds_its_half_up_and_drops_the_surplus_map():
    op = build_primitive("ghost", 7, 1, affine=True)
    assert sum(p.numel() for p in op.parameters()) == 7 * 4 + 4 * 9 + 2 * (2 * 4)
    assert op(torch.randn(2, 7, 4, 4)).shape == (2, 7, 4, 4)


def test_the_average_pool_does_not_count_padding():
    for stride in STRIDES:
        out = build_primitive("avg_pool_3x3", 1, stride, True)(torch.ones(1, 1, 6, 6))
        torch.testing.assert_close(out, torch.ones_like(out))
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    out = build_primitive("avg_pool_3x3", 1, 1, True)(x)
    assert out[0, 0, 0, 0].item() == (0 + 1 + 4 + 5) / 4
    assert out[0, 0, 0, 1].item() == pytest.approx((0 + 1 + 2 + 4 + 5 + 6) / 6)


def test_the_max_pool_does_not_see_padding():
    out = build_primitive("max_pool_3x3", 1, 2, True)(-torch.ones(1, 1, 6, 6))
    assert torch.equal(out, -torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize("channels", [(6, 4), (4, 10)])
def test_the_factorised_reduction_joins_even_pixels_and_odd_ones(channels):
    torch.manual_seed(0)
    op = FactorizedReduce(*channels, affine=False).double()
    x = images(3, channels[0])
    expected = factorised_reduction(x, [op.conv_1.weight, op.conv_2.weight])
    assert expected.shape == (3, channels[1], 4, 4)
    torch.testing.assert_close(op(x), expected)


def test_none_is_zeros_even_of_infinities():
    x = torch.full((2, 3, 4, 4), float("inf"))
    for stride in STRIDES:
        assert not build_primitive("none", 3, stride, True)(x).any()


def test_skip_at_stride_one_is_the_input_itself():
    x = images(1, 3)
    assert build_primitive("skip_connect", 3, 1, True)(x) is x


# --- drop-path


def test_drop_path_zeroes_whole_samples_and_scales_the_rest():
    torch.manual_seed(0)
    x = images(200, 3, size=2)
    out = drop_path(x, 0.25)
    dropped = (out == 0.0).flatten(1).all(dim=1)
    assert 20 < dropped.sum() < 90
    torch.testing.assert_close(out[~dropped], x[~dropped] / 0.75)


def test_drop_path_expects_its_input():
    torch.manual_seed(0)
    out = drop_path(torch.ones(20_000, 1, 1, 1, dtype=torch.float64), 0.4)
    # Five standard errors of the mean of 20,000 values that are 0 or 1 / 0.6.
    assert out.mean().item() == pytest.approx(1.0, abs=5 * (0.4 / 0.6 / 20_000) ** 0.5)


def test_drop_path_keeps_the_precision_and_the_gradient_of_its_input():
    x = torch.ones(64, 2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    out = drop_path(x, 0.5)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def cell_of(primitive: str, reduction: bool = False) -> Cell:
    edges = ((primitive, 0), (primitive, 1))
    torch.manual_seed(0)
    return Cell(Genotype(edges, (2,), edges, (2,)), 4, 4, 4, reduction, False).double()


def test_edges_of_a_cell_are_dropped_sample_by_sample_and_each_by_itself():
    cell = cell_of("max_pool_3x3")
    first, second = images(400, 4), 3.0 - images(400, 4)
    a = plain_primitive("max_pool_3x3", [], cell.preprocess0(first), 1)
    b = plain_primitive("max_pool_3x3", [], cell.preprocess1(second), 1)
    out = 0.5 * cell(first.relu(), second.relu(), 0.5)
    matches = torch.stack(
        [
            torch.isclose(out, kept, atol=1e-9).flatten(1).all(dim=1)
            for kept in (torch.zeros_like(a), a, b, a + b)
        ]
    )
    assert (matches.sum(dim=0) == 1).all()
    assert (matches.sum(dim=1) > 60).all()  # a hundred each are expected


def test_identities_are_never_dropped():
    cell = cell_of("skip_connect")
    x = images(50, 4)
    torch.testing.assert_close(cell(x, x, 0.9), cell(x, x, 0.0))


def test_a_skip_of_stride_two_computes_and_is_dropped():
    cell = cell_of("skip_connect", reduction=True)
    x = images(50, 4)
    assert (cell(x, x, 0.9) == 0.0).flatten(1).all(dim=1).sum() > 25


def test_evaluation_drops_nothing():
    cell = cell_of("conv_3x3")
    x = images(50, 4)
    assert not torch.allclose(cell(x, x, 0.9), cell(x, x, 0.0))
    cell.eval()
    torch.testing.assert_close(cell(x, x, 0.9), cell(x, x, 0.0))
