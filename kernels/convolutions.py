"""Convolutions whose gradients are slow or wrong on CPUs (oneDNN)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from kernels.layouts import at_even_places


class StridedPointwiseConv2d(nn.Conv2d):
    """nn.Conv2d of kernel 1 and stride 2 for fewer than 16 input channels.

    For the gradient of such weights in float32 and channels-last layout oneDNN writes beyond its
    workspace (oneDNN issue 6035): below 8 channels with AVX2, below 16 with AVX-512. At stride 1 it
    does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        seen = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
        return F.conv2d(seen, self.weight, self.bias)


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise nn.Conv2d: odd kernel, "same" padding, stride and dilation 1 or 2, no bias.

    Uses `DepthwiseGradients` for the backward pass on CPUs.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            channels,
            channels,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=channels,
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            # oneDNN's gradient of dilated kernels is not only slow but wrong in bfloat16.
            lower = torch.get_autocast_dtype("cpu")
            x, weight = x.to(lower), weight.to(lower)
        return DepthwiseGradients.apply(x, weight, self.stride[0], self.dilation[0])


class DepthwiseGradients(torch.autograd.Function):
    """A depthwise convolution whose gradients are computed by kernels that are fast in oneDNN.

    Fast are all forward passes, and the weight gradient of dense kernels up to three columns wide;
    others take 5 to 20 times as long. With "same" padding:
    - stride 2, dilation 1: the gradients are those of stride 1, with zeros put between the rows and
      columns of the output's gradient;
    - stride 2, dilation 2: a dense convolution of stride 1 on the even rows and columns;
    - input gradient: the output's gradient convolved with the flipped kernel;
    - weight gradient at dilation 2: that of a dense convolution of the four interleaved sub-images,
      as a batch four times as large;
    - weight gradient of a wide kernel: three columns at a time, of the shifted input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.size = x.shape[2:]
        ctx.even = stride == dilation == 2
        if ctx.even:
            x = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
            stride = dilation = 1
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        padding = dilation * (weight.shape[2] // 2)
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        if ctx.stride == 2:
            grad = at_even_places(grad, ctx.size)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            padding = ctx.dilation * (weight.shape[2] // 2)
            turned = weight.flip(2, 3)
            grad_x = F.conv2d(grad, turned, None, 1, padding, ctx.dilation, groups=len(weight))
            if ctx.even:
                grad_x = at_even_places(grad_x, ctx.size)
        if ctx.needs_input_grad[1]:
            if ctx.dilation == 2:
                x, grad = _interleaved(x), _interleaved(grad)
            grad_weight = _dense_weight_gradient(x, grad, weight)
        return grad_x, grad_weight, None, None


def _interleaved(x: Tensor) -> Tensor:
    """The four interleaved sub-images of x (N, C, H, W) as (4N, C, ceil(H / 2), ceil(W / 2)).

    Odd heights and widths are padded with zeros.
    """
    odd = x.shape[3] % 2, x.shape[2] % 2
    if any(odd):
        x = F.pad(x, (0, odd[0], 0, odd[1]))
    return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])


def _dense_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Weight gradient (C, 1, k, k) of a depthwise convolution of stride and dilation 1."""
    kernel = weight.shape[2]
    parts = []
    for first in range(0, kernel, 3):
        columns = min(3, kernel - first)
        left = kernel // 2 - first  # padding on the left; negative crops
        seen = F.pad(x, (left, columns - 1 - left)) if kernel > 3 else x
        padding = (kernel // 2, 0 if kernel > 3 else kernel // 2)
        size = (*weight.shape[:3], columns)
        parts.append(conv2d_weight(seen, size, grad, 1, padding, 1, len(weight)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)
