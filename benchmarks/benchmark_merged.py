"""Convolutions of one source to several nodes, one by one and as one: a lead that was not kept."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.benchmark_parts import Figures, describe_ratios, take_turns, wait_for
from data.augment import CROP
from model_search import NODES

# The sizes of the search's supernet: channels, height and width.
SIZES = ((16, CROP), (32, CROP // 2), (64, CROP // 4))
KERNELS = (3, 1)


def measure_merged(args: argparse.Namespace, device: torch.device) -> Figures:
    """Time convolutions and batch norms of one source to four nodes, one by one and as one."""
    rows, remarks = [], []
    for (channels, side), kernel in product(SIZES, KERNELS):
        place = f"conv_{kernel}x{kernel} of {channels} channels, {side}x{side}"
        drawn = draw(args.batch_size, channels, side, kernel, device)
        seconds = take_turns(args.rounds, both_ways(*drawn))
        rows += [
            (f"{place}, {way}", 1e3 * median(each), 1e3 * min(each))
            for way, each in seconds.items()
        ]
        ratio = describe_ratios(*seconds.values())
        remarks.append(f"{place}: as one {ratio} times as fast")
    return Figures("ms, forward and backward", rows, remarks)


def both_ways(
    x: Tensor, kernels: list[Tensor], grad: Tensor
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """The gradients of a step, from the outputs of `apart` and of `merged`."""
    channels = x.shape[1]
    norms = [nn.BatchNorm2d(channels, affine=False, device=x.device) for _ in kernels]
    norm = nn.BatchNorm2d(len(kernels) * channels, affine=False, device=x.device)
    return {
        "one by one": lambda: gradients(apart(x, kernels, norms), [x, *kernels], grad),
        "as one": lambda: gradients(merged(x, kernels, norm), [x, *kernels], grad),
    }


def draw(
    batch: int, channels: int, side: int, kernel: int, device: torch.device
) -> tuple[Tensor, list[Tensor], Tensor]:
    """A source (N, C, H, W), a kernel (C, C, k, k) a node, and the gradient of a node's edge."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(memory_format=torch.channels_last)

    kernels = [random(channels, channels, kernel, kernel).requires_grad_() for _ in range(NODES)]
    x = random(batch, channels, side, side).requires_grad_()
    return x, kernels, random(batch, channels, side, side)


def apart(x: Tensor, kernels: Sequence[Tensor], norms: Sequence[Callable]) -> list[Tensor]:
    """What each node is given: a convolution and a batch norm for each."""
    return [
        norm(F.conv2d(x, kernel, padding="same"))
        for kernel, norm in zip(kernels, norms, strict=True)
    ]


def merged(x: Tensor, kernels: Sequence[Tensor], norm: Callable) -> Sequence[Tensor]:
    """The same by one convolution and one batch norm over the channels of all nodes."""
    return norm(F.conv2d(x, torch.cat(list(kernels)), padding="same")).split(x.shape[1], dim=1)


def gradients(outputs: Sequence[Tensor], of: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of what a step needs, each output's own gradient being `grad`; all done."""
    found = torch.autograd.grad(outputs, of, [grad] * len(outputs))
    wait_for(grad.device)
    return found
