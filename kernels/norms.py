"""Batch norms, and weighted sums of them, that train faster than torch's on CPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 256  # most columns of a tensor seen as a wide matrix
# Values of a channel: of fewer, the terms of the gradient nearly cancel, which bfloat16 rounds.
LEAST = 64


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d; uses `NormSum` when training on CPUs where that is faster."""

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if _is_faster(self, x):
            weight = torch.ones(x.shape[1]) if self.weight is None else self.weight
            return _norm_sum([self], [x], [weight], self.bias)
        return super().forward(x)


def weighted_norms(
    norms: Sequence[BatchNorm2d], branches: Iterable[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """The sum of weight * norm(x) over branches x (N, C, H, W), of norms without parameters.

    Each weight is (C,), float32. As the weight of the norm it needs no pass over x of its own, and
    no copy of norm(x) for its gradient.
    """
    branches = iter(branches)
    first = next(branches)
    if _is_faster(norms[0], first):
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


def _is_faster(norm: BatchNorm2d, x: Tensor) -> bool:
    """Whether `NormSum` is faster than torch (docs/speed.md)."""
    channels = x.shape[1]
    return (
        norm.training
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and channels % 16 > 0
        # torch's is slow where threads share its work.
        and channels < (32 if torch.get_num_threads() == 1 else 80)
        and x[:, 0].numel() >= LEAST
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
    """sum_b w_b (x_b - mean_b) / sqrt(var_b + eps) + bias of branches x_b (N, C, H, W).

    Branches are float32 or bfloat16, weights (C,) and the bias (C,) float32. mean_b and var_b
    (biased) are those of the batch. torch's batch norm of a channels-last tensor is slow for few
    channels that are no multiple of 16, most on several threads. Here it sees several pixels side
    by side as G C channels, whose statistics are then combined. With S = sum(g) and
    P_b = sum(g (x_b - mean_b)) / sqrt(var_b + eps), sums over the M pixels, the gradients are S of
    the bias, P_b of w_b, and of x_b
        w_b / sqrt(var_b + eps) (g - S / M - (x_b - mean_b) / sqrt(var_b + eps) P_b / M).
    Also returns the means and variances (B, C), without gradients.
    """

    @staticmethod
    def forward(ctx: Any, eps: float, bias: Tensor | None, *both: Tensor) -> tuple[Tensor, ...]:
        weights, branches = torch.stack(both[: len(both) // 2]), both[len(both) // 2 :]
        means, variances = map(torch.stack, zip(*map(_statistics, branches), strict=True))
        slopes = weights * (variances + eps).rsqrt()
        offset = -(slopes * means).sum(dim=0)
        out = _scaled_sum(branches, slopes, offset if bias is None else offset + bias)
        ctx.save_for_backward(weights, means, variances, *branches)
        ctx.eps = eps
        ctx.mark_non_differentiable(means, variances)
        return out, means, variances

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        weights, means, variances, *branches = ctx.saved_tensors
        wide_grad = _wide(grad)
        columns = wide_grad.shape[1]
        repeat = columns // weights.shape[1]
        sums = [
            # With constant statistics these are P_b and S: one pass, nothing written.
            torch.ops.aten.native_batch_norm_backward(
                wide_grad, _wide(x), torch.ones(columns), mean.repeat(repeat), var.repeat(repeat),
                None, None, False, ctx.eps, (False, True, True),
            )[1:]
            for x, mean, var in zip(branches, means, variances, strict=True)
        ]  # fmt: skip
        grad_weights, grad_biases = (
            torch.stack(each).view(len(branches), repeat, -1).sum(dim=1)
            for each in zip(*sums, strict=True)
        )
        inverse, count = (variances + ctx.eps).rsqrt(), grad[:, 0].numel()
        slopes = weights * inverse
        curves = slopes * inverse * grad_weights / -count
        offsets = slopes * grad_biases[0] / -count - curves * means
        grads = [
            _scaled_sum([grad, x], torch.stack(both), offset)
            for x, offset, *both in zip(branches, offsets, slopes, curves, strict=True)
        ]
        return None, grad_biases[0] if ctx.needs_input_grad[1] else None, *grad_weights, *grads


def _wide(x: Tensor) -> Tensor:
    """x (N, C, H, W) as (1, G * C, N * H * W / G, 1), channels-last: a view where x is.

    G neighbouring pixels are side by side, as kernels that run along rows are slow for short ones.
    """
    channels, pixels, group = x.shape[1], x[:, 0].numel(), 1
    while 2 * group * channels <= WIDTH and pixels % (2 * group) == 0:
        group *= 2
    rows = x.permute(0, 2, 3, 1).reshape(1, -1, 1, group * channels)
    return rows.permute(0, 3, 1, 2)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of x (N, C, H, W), float32 (C,)."""
    wide = _wide(x)
    columns = wide.shape[1]
    # Weights in float32 make the statistics float32; eps 0 makes their inverse exact.
    affine = torch.ones(columns), torch.zeros(columns)
    _, means, inverse = torch.native_batch_norm(wide, *affine, None, None, True, 0.0, 0.0)
    means, variances = means.view(-1, x.shape[1]), inverse.view(-1, x.shape[1]).pow(-2)
    mean = means.mean(dim=0)
    return mean, variances.mean(dim=0) + (means - mean).square().mean(dim=0)


def _scaled_sum(tensors: Sequence[Tensor], slopes: Tensor, offset: Tensor) -> Tensor:
    """offset + the sum of slopes[b] * tensors[b] (N, C, H, W); slopes (B, C), offset (C,)."""
    # Made before its view is: autograd forbids changing a view that a function returns.
    out = torch.empty_like(tensors[0], memory_format=torch.channels_last)
    total = _wide(out)
    repeat = total.shape[1] // len(offset)
    slopes, offset = slopes.repeat(1, repeat), offset.repeat(repeat)
    if out.dtype == torch.float32:
        summed = offset[:, None, None]
        for tensor, slope in zip(tensors, slopes, strict=True):
            summed = torch.addcmul(summed, _wide(tensor), slope[:, None, None], out=total)
        return out
    # A batch norm of mean 0 and variance 1 scales bfloat16 by float32.
    none, zeros, ones = torch.empty(0), torch.zeros_like(offset), torch.ones_like(offset)
    for number, (tensor, slope) in enumerate(zip(tensors, slopes, strict=True)):
        scaled = torch.empty_like(total) if number else total
        torch.ops.aten.native_batch_norm.out(
            _wide(tensor), slope, zeros if number else offset, zeros, ones, False, 0.0, 0.0,
            out=scaled, save_mean=none, save_invstd=none,
        )  # fmt: skip
        if number:
            total.add_(scaled)
    return out
