"""DepthwiseConv2d against torch's own convolution."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kernels.convolutions import DepthwiseConv2d

# Kernel, stride, dilation.
KINDS = [k for k in itertools.product((1, 3, 5, 7), (1, 2), (1, 2)) if k[::2] != (7, 2)]
SIZES = ((12, 12), (11, 11), (9, 14), (3, 3))


def gradients(out, tensors):
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return torch.autograd.grad(out, tensors, g.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("kernel, stride, dilation", KINDS)
@pytest.mark.parametrize("channels, size", itertools.product((1, 3, 16), SIZES))
def test_values_and_gradients_match_conv2d(channels, size, kernel, stride, dilation):
    torch.manual_seed(0)
    ours = DepthwiseConv2d(channels, kernel, stride, dilation).double()
    plain = nn.Conv2d(
        channels, channels, kernel, stride, dilation * (kernel // 2), dilation, channels, bias=False
    ).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, channels, *size, dtype=torch.float64, requires_grad=True)
    x_last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    out, expected = ours(x_last), plain(x)
    torch.testing.assert_close(out, expected)
    found = gradients(out, [x_last, ours.weight])
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(found, gradients(expected, [x, plain.weight]), strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_weights_and_inputs_without_gradient():
    conv = DepthwiseConv2d(4, 3).double()
    assert isinstance(conv, nn.Conv2d)
    assert {name: w.shape for name, w in conv.state_dict().items()} == {"weight": (4, 1, 3, 3)}
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    conv(x).sum().backward()
    assert conv.weight.grad is not None
    assert x.grad is None
    conv.weight.requires_grad_(False)
    x.requires_grad_()
    conv(x).sum().backward()
    expected = F.conv_transpose2d(torch.ones_like(x), conv.weight, padding=1, groups=4)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("kernel, stride, dilation", KINDS)
@pytest.mark.parametrize("channels", (4, 36))
def test_bfloat16_gradients_are_rounded_float32(channels, kernel, stride, dilation):
    torch.manual_seed(0)
    conv = DepthwiseConv2d(channels, kernel, stride, dilation)
    # At this size oneDNN's own gradients of dilated kernels are wrong in bfloat16.
    x = torch.randn(2, channels, 44, 44).to(memory_format=torch.channels_last).requires_grad_()
    exact = gradients(conv(x), [x, conv.weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    for found, wanted in zip(gradients(out, [x, conv.weight]), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() <= 0.02 * wanted.norm()
