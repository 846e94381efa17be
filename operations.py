"""The primitives: what an edge of a cell can compute, and the blocks that join cells.

Every module maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)), float. No convolution
has a bias. Module names are those of the published checkpoints; renaming one breaks loading them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def _conv(
    channels_in: int,
    channels_out: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    return nn.Conv2d(
        channels_in,
        channels_out,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


class ReLUConvBN(nn.Module):
    """ReLU, k x k convolution, batch norm: `conv_1x1`, `conv_3x3`, and a cell's preprocessing."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int, affine: bool
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            _conv(channels_in, channels_out, kernel, stride, kernel // 2),
            nn.BatchNorm2d(channels_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SepConv(nn.Module):
    """Depthwise-separable convolution applied twice; the first application takes the stride."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        half = kernel // 2
        self.op = nn.Sequential(
            nn.ReLU(),
            _conv(channels, channels, kernel, stride, half, groups=channels),
            _conv(channels, channels, 1),
            nn.BatchNorm2d(channels, affine=affine),
            nn.ReLU(),
            _conv(channels, channels, kernel, 1, half, groups=channels),
            _conv(channels, channels, 1),
            nn.BatchNorm2d(channels, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class DilConv(nn.Module):
    """Depthwise convolution of dilation 2, 1x1 convolution, batch norm."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            _conv(channels, channels, kernel, stride, kernel - 1, dilation=2, groups=channels),
            _conv(channels, channels, 1),
            nn.BatchNorm2d(channels, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedConv7(nn.Module):
    """ReLU, 1x7 convolution, 7x1 convolution, batch norm (`conv_7x1_1x7` of AmoebaNet)."""

    def __init__(self, channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            _conv(channels, channels, (1, 7), (1, stride), (0, 3)),
            _conv(channels, channels, (7, 1), (stride, 1), (3, 0)),
            nn.BatchNorm2d(channels, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Ghost(nn.Module):
    """Ghost module (Han et al., CVPR 2020): half the maps by 1x1, the others cheaply from those."""

    def __init__(self, channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.channels = channels
        half = (channels + 1) // 2
        self.primary_conv = nn.Sequential(
            _conv(channels, half, 1, stride), nn.BatchNorm2d(half, affine=affine), nn.ReLU()
        )
        self.cheap_operation = nn.Sequential(
            _conv(half, half, 3, 1, 1, groups=half),
            nn.BatchNorm2d(half, affine=affine),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)[:, : self.channels]


class FactorizedReduce(nn.Module):
    """Halves the size without losing pixels: 1x1 stride-2 convolutions of x and of x shifted.

    Height and width must be even. `channels_out` must be even.
    """

    def __init__(self, channels_in: int, channels_out: int, affine: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = _conv(channels_in, channels_out // 2, 1, 2)
        self.conv_2 = _conv(channels_in, channels_out // 2, 1, 2)
        self.bn = nn.BatchNorm2d(channels_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def preprocessing(
    channels_before_last: int,
    channels_last: int,
    channels: int,
    reduction_before: bool,
    affine: bool,
) -> tuple[nn.Module, nn.Module]:
    """The blocks that bring a cell's two inputs to `channels`, in order.

    The older input is twice as large as the other when the cell before was a reduction.
    """
    first = (
        FactorizedReduce(channels_before_last, channels, affine)
        if reduction_before
        else ReLUConvBN(channels_before_last, channels, 1, 1, affine)
    )
    return first, ReLUConvBN(channels_last, channels, 1, 1, affine)


class Zero(nn.Module):
    """The `none` primitive: zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


_BUILDERS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda _channels, stride, _affine: Zero(stride),
    "max_pool_3x3": lambda _channels, stride, _affine: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda _channels, stride, _affine: nn.AvgPool2d(
        3, stride, padding=1, count_include_pad=False
    ),
    "skip_connect": _skip,
    "sep_conv_3x3": lambda channels, stride, affine: SepConv(channels, 3, stride, affine),
    "sep_conv_5x5": lambda channels, stride, affine: SepConv(channels, 5, stride, affine),
    "sep_conv_7x7": lambda channels, stride, affine: SepConv(channels, 7, stride, affine),
    "dil_conv_3x3": lambda channels, stride, affine: DilConv(channels, 3, stride, affine),
    "dil_conv_5x5": lambda channels, stride, affine: DilConv(channels, 5, stride, affine),
    "ghost": Ghost,
    "conv_1x1": lambda channels, stride, affine: ReLUConvBN(channels, channels, 1, stride, affine),
    "conv_3x3": lambda channels, stride, affine: ReLUConvBN(channels, channels, 3, stride, affine),
    "conv_7x1_1x7": FactorizedConv7,
}


def build_primitive(name: str, channels: int, stride: int, affine: bool) -> nn.Module:
    """The module of primitive `name` for `channels` in and out at `stride` 1 or 2."""
    return _BUILDERS[name](channels, stride, affine)


def drop_path(x: Tensor, drop_prob: float | Tensor) -> Tensor:
    """Zero whole samples of x (N, C, H, W) with probability `drop_prob`, divide the rest by 1 - it.

    Larsson et al., FractalNet, ICLR 2017; the expectation of the output is x. A tensor () is a
    probability that may change without a new compilation.
    """
    keep = 1.0 - drop_prob
    mask = torch.rand((x.shape[0], 1, 1, 1), device=x.device) < keep
    return x * (mask / keep).to(x.dtype)
