"""Slices, concatenations and shuffles whose gradients stay contiguous and channels-last.

Kernels of batch norm and convolution are slow for other layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
        grad = at_even_places(even, ctx.size)
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
    rows = concat_nodes([first, rest]).permute(0, 2, 3, 1).unflatten(3, (-1, first.shape[1]))
    return rows.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


def at_even_places(grad: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros (N, C, *size) with `grad` at the even rows and columns, channels last."""
    out = grad.new_zeros(grad.shape[0], *size, grad.shape[1]).permute(0, 3, 1, 2)
    out[:, :, ::2, ::2] = grad
    return out
