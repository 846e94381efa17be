"""The primitives that an edge of a cell can compute, and the blocks that join cells.

Every primitive maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)), float; the blocks
between cells also change C. No convolution has a bias. Module names are part of the checkpoints.
`kernels` has the modules that replace torch's on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kernels.convolutions import DepthwiseConv2d, StridedPointwiseConv2d
from kernels.layouts import even_odd_places
from kernels.norms import BatchNorm2d

Build = Callable[[int, int, bool], nn.Module]


@dataclass(frozen=True)
class Primitive:
    """An entry of PRIMITIVE_TABLE.

    build: from channels (in and out), stride (1 or 2) and whether batch norms are affine.
    cost: weights at 12 channels and stride 1, for the complexity term of the search.
    searched: whether the supernet contains it; if not, it can only be used in a genotype.
    """

    build: Build
    cost: int
    searched: bool = True


def _conv(
    channels_in: int,
    channels_out: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> nn.Conv2d:
    narrow = (kernel, stride) == (1, 2) and channels_in < 16
    convolution = StridedPointwiseConv2d if narrow else nn.Conv2d
    return convolution(
        channels_in, channels_out, kernel, stride=stride, padding=padding, bias=False
    )


class ConvBlock(nn.Module):
    """Base of the primitives with convolutions: `op` is a ReLU, convolutions and a batch norm.

    forward is norm(body(relu(x))). The parts are separate because a cell computes the ReLU of a
    state once for all its edges, and the supernet weights an edge by the scale of its norm.
    """

    op: nn.Sequential

    @property
    def norm(self) -> BatchNorm2d:
        """The final batch norm."""
        return self.op[-1]  # type: ignore[return-value]

    def body(self, positive: Tensor) -> Tensor:
        """The input of the final batch norm; `positive` is x after the ReLU."""
        for module in self.op[1:-1]:
            positive = module(positive)
        return positive

    def after_relu(self, positive: Tensor) -> Tensor:
        """forward(x); `positive` is x after the ReLU."""
        return self.norm(self.body(positive))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ReLUConvBN(ConvBlock):
    """ReLU, k x k convolution, batch norm: `conv_1x1`, `conv_3x3`, and a cell's preprocessing."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int, affine: bool
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            _conv(channels_in, channels_out, kernel, stride, kernel // 2),
            BatchNorm2d(channels_out, affine=affine),
        )


class SepConv(ConvBlock):
    """Depthwise-separable convolution applied twice; the first application takes the stride."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            DepthwiseConv2d(channels, kernel, stride),
            _conv(channels, channels, 1),
            BatchNorm2d(channels, affine=affine),
            nn.ReLU(inplace=True),
            DepthwiseConv2d(channels, kernel),
            _conv(channels, channels, 1),
            BatchNorm2d(channels, affine=affine),
        )


class DilConv(ConvBlock):
    """Depthwise convolution of dilation 2, 1x1 convolution, batch norm."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            DepthwiseConv2d(channels, kernel, stride, dilation=2),
            _conv(channels, channels, 1),
            BatchNorm2d(channels, affine=affine),
        )


class FactorizedConv7(ConvBlock):
    """ReLU, 1x7 convolution, 7x1 convolution, batch norm (`conv_7x1_1x7` of AmoebaNet)."""

    def __init__(self, channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            _conv(channels, channels, (1, 7), (1, stride), (0, 3)),
            _conv(channels, channels, (7, 1), (stride, 1), (3, 0)),
            BatchNorm2d(channels, affine=affine),
        )


class Ghost(nn.Module):
    """Ghost module (Han et al., CVPR 2020): half the maps by a 1x1 convolution, the other half by a
    depthwise convolution of those."""

    def __init__(self, channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.channels = channels
        half = (channels + 1) // 2
        self.primary_conv = nn.Sequential(
            _conv(channels, half, 1, stride), BatchNorm2d(half, affine=affine), nn.ReLU()
        )
        self.cheap_operation = nn.Sequential(
            DepthwiseConv2d(half, 3),
            BatchNorm2d(half, affine=affine),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)[:, : self.channels]


class FactorizedReduce(ConvBlock):
    """Halve height and width: 1x1 convolutions of stride 2 of x and of x shifted by one pixel.

    Height, width and `channels_out` must be even.
    """

    def __init__(self, channels_in: int, channels_out: int, affine: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = _conv(channels_in, channels_out // 2, 1, 2)
        self.conv_2 = _conv(channels_in, channels_out // 2, 1, 2)
        self.bn = BatchNorm2d(channels_out, affine=affine)

    @property
    def norm(self) -> BatchNorm2d:
        return self.bn

    def body(self, positive: Tensor) -> Tensor:
        # At stride 2 the two convolutions see the even and the odd places of both axes.
        even, odd = even_odd_places(positive)
        return torch.cat(
            [
                F.conv2d(even, self.conv_1.weight, self.conv_1.bias),
                F.conv2d(odd, self.conv_2.weight, self.conv_2.bias),
            ],
            dim=1,
        )

    def fuse(self) -> None:
        """Merge the batch norm into the convolutions, for evaluation only."""
        half, norm = self.conv_1.out_channels, self.bn
        for conv, part in ((self.conv_1, slice(half)), (self.conv_2, slice(half, None))):
            statistics = norm.running_mean[part], norm.running_var[part]
            affine = norm.weight[part], norm.bias[part]
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, None, *statistics, norm.eps, *affine
            )
        self.bn = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.after_relu(self.relu(x))


class Zero(nn.Module):
    """`none`: zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


def _sep_conv(kernel: int) -> Build:
    return lambda channels, stride, affine: SepConv(channels, kernel, stride, affine)


def _dil_conv(kernel: int) -> Build:
    return lambda channels, stride, affine: DilConv(channels, kernel, stride, affine)


def _relu_conv_bn(kernel: int) -> Build:
    return lambda channels, stride, affine: ReLUConvBN(channels, channels, kernel, stride, affine)


# The order is part of the file formats: alphas and decided edges refer to the index of a searched
# primitive. Add new ones at the end.
PRIMITIVE_TABLE = {
    "none": Primitive(lambda _channels, stride, _affine: Zero(stride), cost=0),
    "max_pool_3x3": Primitive(
        lambda _channels, stride, _affine: nn.MaxPool2d(3, stride, padding=1),
        cost=0,
    ),
    "avg_pool_3x3": Primitive(
        lambda _channels, stride, _affine: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
        cost=0,
    ),
    "skip_connect": Primitive(_skip, cost=0),
    "sep_conv_3x3": Primitive(_sep_conv(3), cost=504),
    "sep_conv_5x5": Primitive(_sep_conv(5), cost=888),
    "dil_conv_3x3": Primitive(_dil_conv(3), cost=252),
    "dil_conv_5x5": Primitive(_dil_conv(5), cost=444),
    "ghost": Primitive(Ghost, cost=126),
    "conv_1x1": Primitive(_relu_conv_bn(1), cost=144),
    "conv_3x3": Primitive(_relu_conv_bn(3), cost=1296),
    # Used by NASNet and AmoebaNet.
    "sep_conv_7x7": Primitive(_sep_conv(7), cost=1464, searched=False),
    "conv_7x1_1x7": Primitive(FactorizedConv7, cost=2016, searched=False),
}


def build_primitive(name: str, channels: int, stride: int, affine: bool) -> nn.Module:
    """The module of primitive `name`: `channels` in and out, `stride` 1 or 2."""
    return PRIMITIVE_TABLE[name].build(channels, stride, affine)


def preprocessing(
    channels_before_last: int,
    channels_last: int,
    channels: int,
    reduction_before: bool,
    affine: bool,
) -> tuple[ConvBlock, ConvBlock]:
    """The two blocks that map a cell's inputs to `channels`; both begin with a ReLU.

    The older input is twice as large as the other if the cell before was a reduction.
    """
    first: ConvBlock
    if reduction_before:
        first = FactorizedReduce(channels_before_last, channels, affine)
    else:
        first = ReLUConvBN(channels_before_last, channels, 1, 1, affine)
    return first, ReLUConvBN(channels_last, channels, 1, 1, affine)


def drop_path(x: Tensor, drop_prob: float | Tensor) -> Tensor:
    """Zero each sample of x (N, C, H, W) with probability `drop_prob`, divide the others by 1 - it.

    Larsson et al., FractalNet, ICLR 2017. As a tensor () the probability can change without
    recompilation.
    """
    keep = 1.0 - drop_prob
    mask = torch.rand((x.shape[0], 1, 1, 1), device=x.device) < keep
    return x * (mask / keep).to(x.dtype)
