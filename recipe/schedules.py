"""Schedules of the learning rate, drop-path and the size of images.

`args` is the parsed command line; the functions name the flags that they read.
"""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import dataclass

# The learning rate at the start of a warm-up, relative to the highest (Smith and Topin, 2018).
WARMUP_START = 1 / 25


def cosine(progress: float, first: float, last: float = 0.0) -> float:
    """Cosine annealing (Loshchilov and Hutter, 2017): `first` at progress 0, `last` at 1."""
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress))


def learning_rate_at(epoch: float, args: Namespace) -> float:
    """Learning rate after `epoch` epochs, of which the last may be a fraction.

    Linear from `WARMUP_START` times --learning_rate over --warmup_epochs, then a half cosine to 0
    at --epochs.
    """
    highest, warmup = args.learning_rate, args.warmup_epochs
    if epoch < warmup:
        return highest * (WARMUP_START + (1.0 - WARMUP_START) * epoch / warmup)
    return cosine((epoch - warmup) / (args.epochs - warmup), highest)


def linear_ramp(epoch: int, epochs: int, highest: float) -> float:
    """Linear from 0 over `epochs` epochs to `highest`, then constant."""
    return highest * min(1.0, epoch / epochs)


def size_at(epoch: int, args: Namespace) -> int | None:
    """Side of the training images in pixels by --sizes and --size_epochs; None: not resized."""
    for size, epochs in zip(args.sizes, args.size_epochs, strict=True):
        if epoch < epochs:
            return size
        epoch -= epochs
    return None


@dataclass(frozen=True)
class DropPath:
    """The drop-path schedule: a linear ramp to `prob` over `epochs`, of which `start_epoch` passed.

    Fine-tuning continues the ramp of the checkpoint that it starts from.
    """

    start_epoch: int
    epochs: int
    prob: float

    def at(self, epoch: int) -> float:
        """The probability in epoch `epoch` of the run."""
        return linear_ramp(self.start_epoch + epoch, self.epochs, self.prob)
