"""Convolutions of one source to several nodes, one by one and as one: a lead that was not kept."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.augment import CROP
from tools.benchmark_parts import Figures, describe_ratios, take_turns, wait_for

# Of one source to the four nodes of a cell, at the three sizes of the search's supernet.
NODES = 4
SIZES = ((16, CROP), (32, CROP // 2), (64, CROP // 4))  # channels, height and width
KERNELS = (3, 1)


def measure_merged(args: argparse.Namespace, device: torch.device) -> Figures:
    """Time convolutions and batch norms of one source to four nodes, one by one and as one."""
    rows, remarks = [], []
    for channels, side in SIZES:
        for kernel in KERNELS:
            x, kernels, grad = draw(args.batch_size, channels, side, kernel, device)
            norms = [
                nn.BatchNorm2d(count, affine=False, device=device)
                for count in (*[channels] * NODES, NODES * channels)
            ]
            place = f"conv_{kernel}x{kernel} of {channels} channels, {side}x{side}"
            sides = {
                f"{place}, one by one": lambda x=x, w=kernels, n=norms, g=grad: gradients(
                    apart(x, w, n[:NODES]), [x, *w], g
                ),
                f"{place}, as one": lambda x=x, w=kernels, n=norms, g=grad: gradients(
                    merged(x, w, n[NODES]), [x, *w], g
                ),
            }
            seconds = take_turns(args.rounds, sides)
            rows += [(name, 1e3 * median(each), 1e3 * min(each)) for name, each in seconds.items()]
            ratio = describe_ratios(*seconds.values())
            remarks.append(f"{place}: as one {ratio} times as fast")
    return Figures("ms, forward and backward", rows, remarks)


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
