"""The primitives that an edge of a cell can compute, and the blocks that join cells.

Every module maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)), float. No convolution
has a bias. Module names are part of the checkpoints. The second half of the file replaces torch's
own code where that is slow or wrong on CPUs; it computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

Build = Callable[[int, int, bool], nn.Module]


@dataclass(frozen=True)
class Primitive:
    """An entry of PRIMITIVE_TABLE.

    build: from channels (in and out), stride (1 or 2) and whether batch norms are affine.
    cost: weights at 12 channels and stride 1, for the complexity term of the search.
    searched: whether the supernet contains it; if not, it can only be used in a genotype.
    colours: of lines and of the background of labels in plots; None takes them from a cycle.
    """

    build: Build
    cost: int
    searched: bool = True
    colours: tuple[str, str] | None = None


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
# primitive. Add new ones at the end. Related primitives have similar colours.
PRIMITIVE_TABLE = {
    "none": Primitive(
        lambda _channels, stride, _affine: Zero(stride), cost=0, colours=("#8b949e", "#eef0f2")
    ),
    "max_pool_3x3": Primitive(
        lambda _channels, stride, _affine: nn.MaxPool2d(3, stride, padding=1),
        cost=0,
        colours=("#b45309", "#fdebd3"),
    ),
    "avg_pool_3x3": Primitive(
        lambda _channels, stride, _affine: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
        cost=0,
        colours=("#d18f1f", "#fdf3dc"),
    ),
    "skip_connect": Primitive(_skip, cost=0, colours=("#57606a", "#eaedf0")),
    "sep_conv_3x3": Primitive(_sep_conv(3), cost=504, colours=("#1f6fb8", "#dcebf9")),
    "sep_conv_5x5": Primitive(_sep_conv(5), cost=888, colours=("#15508a", "#d0e2f4")),
    "dil_conv_3x3": Primitive(_dil_conv(3), cost=252, colours=("#7a52b3", "#ebe2f7")),
    "dil_conv_5x5": Primitive(_dil_conv(5), cost=444, colours=("#5b3591", "#e1d4f2")),
    "ghost": Primitive(Ghost, cost=126, colours=("#0f8a7e", "#d6f1ee")),
    "conv_1x1": Primitive(_relu_conv_bn(1), cost=144, colours=("#c2416b", "#fbe1ea")),
    "conv_3x3": Primitive(_relu_conv_bn(3), cost=1296, colours=("#9b2145", "#f6d3de")),
    # Used by NASNet and AmoebaNet.
    "sep_conv_7x7": Primitive(
        _sep_conv(7), cost=1464, searched=False, colours=("#0d3760", "#c6d8ea")
    ),
    "conv_7x1_1x7": Primitive(
        FactorizedConv7, cost=2016, searched=False, colours=("#6f1230", "#efc8d5")
    ),
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


# --- work-arounds for slow or wrong CPU kernels (oneDNN); the results are those of torch


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d; uses `NormSum` when training on CPUs where that is faster."""

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if _faster_norm(self, x):
            weight = x.new_ones(x.shape[1]) if self.weight is None else self.weight
            return _norm_sum([self], [x], [weight], self.bias)
        return super().forward(x)


def weighted_norms(
    norms: Sequence[BatchNorm2d], branches: Iterable[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """The sum of weight * norm(x) over branches x (N, C, H, W), of norms without parameters.

    Each weight is (C,). As the weight of the norm, it needs no pass over x of its own, and no copy
    of norm(x) for its gradient.
    """
    branches = iter(branches)
    first = next(branches)
    if _faster_norm(norms[0], first):
        return _norm_sum(norms, [first, *branches], weights, None)
    total = _weighted_norm(norms[0], first, weights[0])
    for norm, x, weight in zip(norms[1:], branches, weights[1:], strict=True):
        total = total.add_(_weighted_norm(norm, x, weight))
    return total


def _weighted_norm(norm: BatchNorm2d, x: Tensor, weight: Tensor) -> Tensor:
    tracked = norm.track_running_stats
    if norm.training and tracked:
        norm.num_batches_tracked.add_(1)
    known = tracked or not norm.training
    mean, var = (norm.running_mean, norm.running_var) if known else (None, None)
    return F.batch_norm(x, mean, var, weight, None, norm.training, norm.momentum, norm.eps)


def _faster_norm(norm: BatchNorm2d, x: Tensor) -> bool:
    return (
        norm.training
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[1] < 64  # above, and for multiples of 16, torch is as fast (docs/speed.md)
        and x.shape[1] % 16 > 0
        and x[:, 0].numel() > 1  # torch explains why one value a channel is too few
    )


def _norm_sum(
    norms: Sequence[BatchNorm2d],
    branches: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
) -> Tensor:
    """NormSum of `norms`, whose running statistics are updated."""
    out, means, variances = NormSum.apply(norms[0].eps, bias, *weights, *branches)
    count = out[:, 0].numel()
    for norm, mean, var in zip(norms, means, variances * (count / (count - 1)), strict=True):
        if norm.track_running_stats:
            norm.num_batches_tracked.add_(1)
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(var, norm.momentum)
    return out


class NormSum(torch.autograd.Function):
    """sum_b w_b (x_b - mean_b) / sqrt(var_b + eps) + bias of branches x_b (N, C, H, W), in float32.

    mean_b and var_b (biased) are those of the batch. On a channels-last tensor torch's batch norm
    is slow for few channels that are no multiple of 16. Here the sums of all pixels are
    products with a vector of ones, and what is left are multiply-adds, which write the sum of all
    branches in place. With S = sum(g) and P_b = sum(g (x_b - mean_b)) / sqrt(var_b + eps), sums
    over the M pixels, the gradients are S of the bias, P_b of w_b, and of x_b
        w_b / sqrt(var_b + eps) (g - S / M - (x_b - mean_b) / sqrt(var_b + eps) P_b / M).
    Also returns the means and variances (B, C), without gradients.
    """

    @staticmethod
    def forward(ctx: Any, eps: float, bias: Tensor | None, *both: Tensor) -> tuple[Tensor, ...]:
        weights, branches = torch.stack(both[: len(both) // 2]), both[len(both) // 2 :]
        wide = [_wide(x) for x in branches]
        means = _pixel_sums(wide, weights) / branches[0][:, 0].numel()
        repeated = means.repeat(1, wide[0].shape[1] // means.shape[1])
        squares = ((x - mean).square_() for x, mean in zip(wide, repeated, strict=True))
        variances = _pixel_sums(squares, weights) / branches[0][:, 0].numel()
        slopes = weights * (variances + eps).rsqrt()
        offset = -(slopes * means).sum(dim=0)
        out = torch.empty_like(branches[0], memory_format=torch.channels_last)
        _multiply_add(_wide(out), offset if bias is None else offset + bias, slopes, wide)
        ctx.save_for_backward(weights, means, variances, *branches)
        ctx.eps = eps
        ctx.mark_non_differentiable(means, variances)
        return out, means, variances

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        weights, means, variances, *branches = ctx.saved_tensors
        wide_grad, count = _wide(grad), grad[:, 0].numel()
        (grad_bias,) = _pixel_sums([wide_grad], weights[:1])
        inverse = (variances + ctx.eps).rsqrt()
        repeat = 1, wide_grad.shape[1] // weights.shape[1]
        statistics = means.repeat(repeat), variances.repeat(repeat)
        grad_weights = torch.stack([
            # Of all its results for constant statistics only P_b: one pass, nothing written.
            torch.ops.aten.native_batch_norm_backward(
                _as_image(wide_grad), _as_image(_wide(x)), None, mean, var, None, None, False,
                ctx.eps, (False, True, False),
            )[1]
            for x, mean, var in zip(branches, *statistics, strict=True)
        ]).view(len(branches), -1, weights.shape[1]).sum(dim=1)  # fmt: skip
        slopes = weights * inverse
        curves = slopes * inverse * grad_weights / -count
        offsets = slopes * grad_bias / -count - curves * means
        grads = []
        for x, offset, *slope in zip(branches, offsets, slopes, curves, strict=True):
            out = torch.empty_like(x, memory_format=torch.channels_last)
            _multiply_add(_wide(out), offset, torch.stack(slope), [wide_grad, _wide(x)])
            grads.append(out)
        return None, grad_bias if ctx.needs_input_grad[1] else None, *grad_weights, *grads


def _wide(x: Tensor) -> Tensor:
    """x (N, C, H, W) as (N * H * W / G, G * C), a view where x is channels-last.

    Neighbouring pixels side by side: kernels that run along rows are slow for short ones.
    """
    channels, pixels, group = x.shape[1], x[:, 0].numel(), 1
    while 2 * group * channels <= 256 and pixels % (2 * group) == 0:
        group *= 2
    return x.permute(0, 2, 3, 1).reshape(-1, group * channels)


def _as_image(wide: Tensor) -> Tensor:
    """A matrix (R, W) as a channels-last view (1, W, R, 1)."""
    return wide.view(1, -1, 1, wide.shape[1]).permute(0, 3, 1, 2)


def _pixel_sums(wide: Iterable[Tensor], like: Tensor) -> Tensor:
    """The sums of all pixels of matrices that `_wide` made, (B, C) as `like`."""
    rows = []
    for matrix in wide:
        rows.append(matrix.new_ones(1, len(matrix)) @ matrix)
    return torch.cat(rows).view(len(rows), -1, like.shape[1]).sum(dim=1)


def _multiply_add(out: Tensor, offset: Tensor, slopes: Tensor, matrices: Sequence[Tensor]) -> None:
    """out = offset + the sum of slopes[b] * matrices[b]; slopes (B, C) and offset (C,) repeated."""
    group = out.shape[1] // len(offset)
    total = offset.repeat(group)
    for matrix, slope in zip(matrices, slopes.repeat(1, group), strict=True):
        total = torch.addcmul(total, matrix, slope, out=out)


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
            grad = _at_even_places(grad, ctx.size)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            padding = ctx.dilation * (weight.shape[2] // 2)
            turned = weight.flip(2, 3)
            grad_x = F.conv2d(grad, turned, None, 1, padding, ctx.dilation, groups=len(weight))
            if ctx.even:
                grad_x = _at_even_places(grad_x, ctx.size)
        if ctx.needs_input_grad[1]:
            if ctx.dilation == 2:
                x, grad = _interleaved(x), _interleaved(grad)
            grad_weight = _dense_weight_gradient(x, grad, weight)
        return grad_x, grad_weight, None, None


def _at_even_places(grad: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros (N, C, *size) with `grad` at the even rows and columns, channels last."""
    out = grad.new_zeros(grad.shape[0], *size, grad.shape[1]).permute(0, 3, 1, 2)
    out[:, :, ::2, ::2] = grad
    return out


def _interleaved(x: Tensor) -> Tensor:
    """The four interleaved sub-images of x (N, C, H, W) as (4N, C, ceil(H / 2), ceil(W / 2)).

    Odd heights and widths are padded with zeros.
    """
    count, channels, height, width = x.shape
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    x = x.permute(0, 2, 3, 1)
    half = ((height + 1) // 2, (width + 1) // 2)
    x = x.reshape(count, half[0], 2, half[1], 2, channels).permute(2, 4, 0, 1, 3, 5)
    return x.reshape(4 * count, *half, channels).permute(0, 3, 1, 2)


def _dense_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Weight gradient (C, 1, k, k) of a depthwise convolution of stride and dilation 1."""
    kernel = weight.shape[2]
    parts = []
    for first in range(0, kernel, 3):
        columns = min(3, kernel - first)
        left = kernel // 2 - first  # padding on the left; negative crops
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


def even_odd_places(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, C, H, W), H and W even, at the even and at the odd places of both axes."""
    if torch.is_grad_enabled():
        return EvenOddPlaces.apply(x)
    return _slice_places(x)


def _slice_places(x: Tensor) -> tuple[Tensor, Tensor]:
    even, odd = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
    layout = torch.channels_last
    return even.contiguous(memory_format=layout), odd.contiguous(memory_format=layout)


class EvenOddPlaces(torch.autograd.Function):
    """`even_odd_places` with a backward that fills one gradient instead of adding two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.size = x.shape[2:]
        return _slice_places(x)

    @staticmethod
    def backward(ctx: Any, even: Tensor, odd: Tensor) -> Tensor:
        grad = _at_even_places(even, ctx.size)
        grad[:, :, 1::2, 1::2] = odd
        return grad


def concat_nodes(nodes: Sequence[Tensor]) -> Tensor:
    """The nodes of a cell, each (N, C, H, W), as one (N, K * C, H, W)."""
    if torch.is_grad_enabled():
        return ConcatNodes.apply(*nodes)
    return torch.cat(list(nodes), dim=1)


class ConcatNodes(torch.autograd.Function):
    """`concat_nodes` with a backward that gives each node a contiguous gradient.

    That of torch.cat gives views, for which batch norms are slow.
    """

    @staticmethod
    def forward(ctx: Any, *nodes: Tensor) -> Tensor:
        ctx.sizes = [node.shape[1] for node in nodes]
        return torch.cat(nodes, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        parts = grad.split(ctx.sizes, dim=1)
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)


def join_shuffled(first: Tensor, rest: Tensor) -> Tensor:
    """(N, c, H, W) and (N, (K - 1) c, H, W) as one (N, K * c, H, W) with shuffled channels.

    The channel shuffle of ShuffleNet with K groups: channel i of group k becomes channel K i + k.
    """
    return JoinShuffled.apply(first, rest)


class JoinShuffled(torch.autograd.Function):
    """`join_shuffled` with a backward that gives each part a contiguous gradient."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, rest: Tensor) -> Tensor:
        ctx.sizes = [first.shape[1], rest.shape[1]]
        groups = 1 + rest.shape[1] // first.shape[1]
        return _shuffle_channels(torch.cat([first, rest], dim=1), groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        # Shuffling with c groups is the inverse of shuffling with K.
        parts = _shuffle_channels(grad, ctx.sizes[0]).split(ctx.sizes, dim=1)
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)


def _shuffle_channels(x: Tensor, groups: int) -> Tensor:
    rows = x.permute(0, 2, 3, 1).unflatten(3, (groups, -1))
    return rows.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
