"""The depthwise convolution that is fast to differentiate against torch's own."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from operations import DepthwiseConv2d

# Kernel, stride, dilation: every one that a primitive has, and what lies between them.
KINDS = [
    (kernel, stride, dilation)
    for kernel, stride, dilation in itertools.product((3, 5, 7), (1, 2), (1, 2))
    if (kernel, dilation) != (7, 2)
]
SIZES = ((12, 12), (11, 11), (9, 14), (3, 3))


def gradients(out, tensors):
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return torch.autograd.grad(out, tensors, g.to(memory_format=torch.channels_last))


def close(ours, theirs, tolerance=1e-5):
    return (ours.double() - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("kernel, stride, dilation", KINDS)
@pytest.mark.parametrize("channels, size", itertools.product((1, 3, 16), SIZES))
def test_values_and_gradients_are_those_of_conv2d(channels, size, kernel, stride, dilation):
    torch.manual_seed(0)
    ours = DepthwiseConv2d(channels, kernel, stride, dilation)
    x = torch.randn(3, channels, *size).to(memory_format=torch.channels_last).requires_grad_()
    plain = nn.Conv2d(
        channels, channels, kernel, stride, dilation * (kernel // 2), dilation, channels, bias=False
    ).double()
    plain.load_state_dict(ours.state_dict())
    exact = x.detach().double().requires_grad_()

    out, expected = ours(x), plain(exact)
    assert out.shape == expected.shape
    assert close(out, expected)
    for found, wanted in zip(
        gradients(out, [x, ours.weight]), gradients(expected, [exact, plain.weight]), strict=True
    ):
        assert close(found, wanted)


@pytest.mark.parametrize("kernel, stride, dilation", KINDS)
def test_gradients_keep_the_channels_last_layout(kernel, stride, dilation):
    conv = DepthwiseConv2d(16, kernel, stride, dilation)
    x = torch.randn(2, 16, 12, 12).to(memory_format=torch.channels_last).requires_grad_()
    (grad,) = gradients(conv(x), [x])
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_it_is_a_conv2d_to_whoever_counts_or_loads_it():
    conv = DepthwiseConv2d(6, 5, stride=2)
    assert isinstance(conv, nn.Conv2d)
    assert conv.groups == 6
    assert {name: w.shape for name, w in conv.state_dict().items()} == {"weight": (6, 1, 5, 5)}


def test_frozen_weights_and_an_input_without_gradient_are_left_alone():
    conv = DepthwiseConv2d(4, 3)
    x = torch.randn(2, 4, 8, 8)
    conv(x).sum().backward()
    assert conv.weight.grad is not None
    assert x.grad is None
    conv.weight.requires_grad_(False)
    x.requires_grad_()
    conv(x).sum().backward()
    assert torch.allclose(x.grad, F.conv_transpose2d(torch.ones(2, 4, 8, 8), conv.weight,
                                                     padding=1, groups=4), atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("kernel, stride, dilation", KINDS)
@pytest.mark.parametrize("channels", (4, 36))
def test_gradients_in_bfloat16_are_those_of_float32_rounded(channels, kernel, stride, dilation):
    torch.manual_seed(0)
    conv = DepthwiseConv2d(channels, kernel, stride, dilation)
    # At this size oneDNN's own gradients of dilated kernels are garbage in bfloat16.
    x = torch.randn(2, channels, 44, 44).to(memory_format=torch.channels_last).requires_grad_()
    exact = gradients(conv(x), [x, conv.weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
    for found, wanted in zip(gradients(out, [x, conv.weight]), exact, strict=True):
        assert close(found, wanted, 0.02)


def test_under_autocast_it_runs_in_the_lower_precision():
    conv = DepthwiseConv2d(4, 3)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad.dtype == conv.weight.grad.dtype == torch.float32
