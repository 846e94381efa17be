"""The primitives: what an edge of a cell can compute, and the blocks that join cells.

Every module maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)), float. No convolution
has a bias. Module names are those of the published checkpoints; renaming one breaks loading them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights


def _conv(
    channels_in: int,
    channels_out: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=padding, bias=False)


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, with `GroupedBatchNorm` for training on CPUs where that is faster.

    torch's code for channels-last layout is slow where the channels are no multiple of 16: at 36,
    the paper's, it takes two to four times as long as at 32.
    """

    def forward(self, x: Tensor) -> Tensor:
        group = 16 // math.gcd(self.num_features, 16)
        grouped = (
            group > 1
            and self.training
            and self.affine
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and x[:, 0].numel() % group == 0
            and x.is_contiguous(memory_format=torch.channels_last)
        )
        if not grouped:
            return super().forward(x)
        out, mean, var = GroupedBatchNorm.apply(x, self.weight, self.bias, self.eps, group)
        if self.track_running_stats:
            count = x[:, 0].numel()
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return out


class GroupedBatchNorm(torch.autograd.Function):
    """Batch norm of x (N, C, H, W) by its own mean and variance, `group` pixels as one of more
    channels.

    In channels-last layout `group` neighbouring pixels are a view of one pixel of group * C
    channels, a multiple of 16, for which torch's statistics, scaling and sums are fast. Means and
    variances of the groups are put together to those of the channels; that the gradient of a batch
    norm goes through its statistics is added by one more pass:
        grad_x = a (g - mean(g) - (x - mean) / (var + eps) * mean(g (x - mean))),
    a = weight / sqrt(var + eps). Returns also mean and biased variance (C,), without gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _grouped(x, group)
        means, variances = torch.ops.aten.batch_norm_update_stats(wide, None, None, 0.0)
        means, variances = means.view(group, -1), variances.view(group, -1)
        mean = means.mean(dim=0)
        var = (variances + (means - mean).square()).mean(dim=0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, var)
        repeated = [each.repeat(group) for each in (weight, bias, mean, var)]
        # Written into x's own shape, as a view of another could not be changed in place later on.
        out, none = torch.empty_like(x), x.new_empty(0)
        torch.ops.aten.native_batch_norm.out(
            wide, *repeated, False, 0.0, eps, out=_grouped(out, group), save_mean=none,
            save_invstd=none,
        )  # fmt: skip
        return out, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        group, eps = ctx.group, ctx.eps
        wide = _grouped(x, group)
        grad = grad.contiguous(memory_format=torch.channels_last)
        repeated = [each.repeat(group) for each in (weight, mean, var)]
        # With fixed statistics: a g, and the sums over g (x - mean) / sqrt(var + eps) and g.
        out, products, sums = torch.ops.aten.native_batch_norm_backward(
            _grouped(grad, group), wide, *repeated, None, None, False, eps, (True, True, True)
        )
        grad_weight, grad_bias = (each.view(group, -1).sum(dim=0) for each in (products, sums))
        inverse, count = (var + eps).rsqrt(), x[:, 0].numel()
        slope = weight * inverse.square() * grad_weight / -count
        offset = weight * inverse * grad_bias / -count - slope * mean
        rows = out.permute(0, 2, 3, 1)
        rows.addcmul_(wide.permute(0, 2, 3, 1), slope.repeat(group)).add_(offset.repeat(group))
        return _ungrouped(out, x), grad_weight, grad_bias, None, None


def _grouped(x: Tensor, group: int) -> Tensor:
    """x (N, C, H, W), channels last, as a view (1, group * C, 1, N * H * W / group) of it."""
    rows = x.permute(0, 2, 3, 1).reshape(1, 1, -1, group * x.shape[1])
    return rows.permute(0, 3, 1, 2)


def _ungrouped(wide: Tensor, x: Tensor) -> Tensor:
    """What `_grouped` made, in the shape of x (N, C, H, W)."""
    count, channels, height, width = x.shape
    return wide.permute(0, 2, 3, 1).reshape(count, height, width, channels).permute(0, 3, 1, 2)


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution of an odd kernel, "same" padding, stride and dilation 1 or 2, no bias.

    Exactly nn.Conv2d of these, with `DepthwiseGradients` for its backward pass on CPUs.
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
            # Besides being slow, oneDNN's own gradient of dilated kernels is wrong in bfloat16.
            lower = torch.get_autocast_dtype("cpu")
            x, weight = x.to(lower), weight.to(lower)
        return DepthwiseGradients.apply(x, weight, self.stride[0], self.dilation[0])


class DepthwiseGradients(torch.autograd.Function):
    """A depthwise convolution whose gradients come from kernels that oneDNN has a fast code for.

    That is so for every forward pass, and for the weights' gradient of dense kernels at most three
    wide; the others take 5 to 20 times as long. So with padding "same",
    - a stride of 2 at dilation 1 is one of 1 whose output's gradient has zeros between;
    - at dilation 2 it is a dense convolution of stride 1 over the even places, all that it sees;
    - the input's gradient is the convolution of the output's by the kernel turned around;
    - the weights' gradient at dilation 2 is the dense one of the four interleaved sub-images, as
      four times as many images;
    - that of a wide kernel is found three columns at a time, of the input shifted.
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
            grad = _spread(grad, ctx.size)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            padding = ctx.dilation * (weight.shape[2] // 2)
            turned = weight.flip(2, 3)
            grad_x = F.conv2d(grad, turned, None, 1, padding, ctx.dilation, groups=len(weight))
            if ctx.even:
                grad_x = _spread(grad_x, ctx.size)
        if ctx.needs_input_grad[1]:
            if ctx.dilation == 2:
                x, grad = _interleaved(x), _interleaved(grad)
            grad_weight = _dense_weight_gradient(x, grad, weight)
        return grad_x, grad_weight, None, None


def _spread(grad: Tensor, size: tuple[int, int]) -> Tensor:
    """`grad` at the even places of a zero tensor (N, C, *size)."""
    spread = grad.new_zeros(grad.shape[0], *size, grad.shape[1]).permute(0, 3, 1, 2)
    spread[:, :, ::2, ::2] = grad
    return spread


def _interleaved(x: Tensor) -> Tensor:
    """The four sub-images of x (N, C, H, W) as (4N, C, ceil(H / 2), ceil(W / 2)), zeros added."""
    count, channels, height, width = x.shape
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    x = x.permute(0, 2, 3, 1)
    half = ((height + 1) // 2, (width + 1) // 2)
    x = x.reshape(count, half[0], 2, half[1], 2, channels).permute(2, 4, 0, 1, 3, 5)
    return x.reshape(4 * count, *half, channels).permute(0, 3, 1, 2)


def _dense_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weights (C, 1, k, k) of a convolution of stride and dilation 1."""
    kernel = weight.shape[2]
    parts = []
    for first in range(0, kernel, 3):
        columns = min(3, kernel - first)
        left = kernel // 2 - first  # the zeros, or less the columns, left of what they see
        seen = F.pad(x, (left, columns - 1 - left)) if kernel > 3 else x
        padding = (kernel // 2, 0 if kernel > 3 else kernel // 2)
        parts.append(
            torch.ops.aten.convolution_backward(
                grad,
                seen,
                weight[:, :, :, first : first + columns],
                None,
                (1, 1),
                padding,
                (1, 1),
                False,
                (0, 0),
                len(weight),
                (False, True, False),
            )[1]
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


class ConvBlock(nn.Module):
    """What primitives with a convolution share: `op` is a ReLU, convolutions, and a batch norm.

    forward is norm(body(relu(x))). Whoever computes the ReLU of a state once for all that begin
    with it, or lets the norm do the weighting too, takes these apart.
    """

    op: nn.Sequential

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The batch norm at the end."""
        return self.op[-1]

    def body(self, positive: Tensor) -> Tensor:
        """What the norm is given, from x after the ReLU."""
        for module in self.op[1:-1]:
            positive = module(positive)
        return positive

    def after_relu(self, positive: Tensor) -> Tensor:
        """forward of x, from x after the ReLU."""
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
    """Ghost module (Han et al., CVPR 2020): half the maps by 1x1, the others cheaply from those."""

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
    """Halves the size without losing pixels: 1x1 stride-2 convolutions of x and of x shifted.

    Height and width must be even. `channels_out` must be even.
    """

    def __init__(self, channels_in: int, channels_out: int, affine: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = _conv(channels_in, channels_out // 2, 1, 2)
        self.conv_2 = _conv(channels_in, channels_out // 2, 1, 2)
        self.bn = BatchNorm2d(channels_out, affine=affine)

    @property
    def norm(self) -> nn.BatchNorm2d:
        return self.bn

    def body(self, positive: Tensor) -> Tensor:
        # Of x and of x shifted by a pixel both ways, a stride of 2 sees the even and odd places.
        even, odd = EvenOddPlaces.apply(positive)
        return torch.cat(
            [
                F.conv2d(even, self.conv_1.weight, self.conv_1.bias),
                F.conv2d(odd, self.conv_2.weight, self.conv_2.bias),
            ],
            dim=1,
        )

    def fold(self) -> None:
        """Make the norm part of the convolutions, for evaluation alone."""
        half, norm = self.conv_1.out_channels, self.bn
        for conv, part in ((self.conv_1, slice(half)), (self.conv_2, slice(half, None))):
            statistics = norm.running_mean[part], norm.running_var[part]
            affine = norm.weight[part], norm.bias[part]
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, None, *statistics, norm.eps, *affine
            )
        self.bn = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after_relu(self.relu(x))


class EvenOddPlaces(torch.autograd.Function):
    """x (N, C, H, W), H and W even, at the even and at the odd places of both axes, each half as
    large.

    Only its backward differs from two slices of torch: one gradient is filled, not two and added.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.size = x.shape[2:]
        parts = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)

    @staticmethod
    def backward(ctx: Any, even: Tensor, odd: Tensor) -> Tensor:
        grad = _spread(even, ctx.size)
        grad[:, :, 1::2, 1::2] = odd
        return grad


class ConcatNodes(torch.autograd.Function):
    """The nodes of a cell, each (N, C, H, W), as one (N, K * C, H, W).

    Only its backward differs from torch.cat: each node is given a gradient with a memory of its
    own, not a view of all nodes', for which batch norms have no fast code.
    """

    @staticmethod
    def forward(ctx: Any, *nodes: Tensor) -> Tensor:
        ctx.sizes = [node.shape[1] for node in nodes]
        return torch.cat(nodes, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        parts = grad.split(ctx.sizes, dim=1)
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)


def preprocessing(
    channels_before_last: int,
    channels_last: int,
    channels: int,
    reduction_before: bool,
    affine: bool,
) -> tuple[nn.Module, nn.Module]:
    """The blocks that bring a cell's two inputs to `channels`, in order; both begin with a ReLU.

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
