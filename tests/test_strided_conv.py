"""The strided 1x1 convolution of few channels, for which oneDNN writes out of bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.convolutions import StridedPointwiseConv2d
from operations import build_primitive


class Backward(TorchDispatchMode):
    """Lists (shape of the weights, stride) of every convolution whose gradient is computed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append((tuple(args[2].shape), tuple(args[4])))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", (2, 4, 7, 15, 16))
@pytest.mark.parametrize("name", ("conv_1x1", "ghost", "skip_connect"))
def test_unsafe_gradient_is_never_computed(name, channels):
    # The corrupted heap is noticed by chance only, so the calls are checked instead.
    if name == "skip_connect" and channels % 2:
        pytest.skip("a reduction needs an even number of channels")
    primitive = build_primitive(name, channels, 2, affine=False)
    x = torch.randn(2, channels, 12, 12).to(memory_format=torch.channels_last)
    out = primitive(x)
    with Backward() as backward:
        out.sum().backward()
    assert backward.seen
    for (_, inputs, *kernel), stride in backward.seen:
        assert inputs >= 16 or kernel != [1, 1] or stride == (1, 1) or inputs == 1


@pytest.mark.parametrize("channels", (1, 3, 8, 15))
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_matches_conv2d_in_float64(size, channels):
    torch.manual_seed(0)
    ours = StridedPointwiseConv2d(channels, 5, 1, stride=2, bias=False).double()
    plain = nn.Conv2d(channels, 5, 1, stride=2, bias=False).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, channels, *size).double().to(memory_format=torch.channels_last)
    results = []
    for convolution in (ours, plain):
        seen = x.clone().requires_grad_()
        out = convolution(seen)
        out.square().sum().backward()
        results.append((out, seen.grad, convolution.weight.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))
