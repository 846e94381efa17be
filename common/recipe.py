"""Recipes of training beyond the paper's: the flags, the sets of them, and what they become."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from common import arguments
from common.objective import objective
from data.mix import mixing

# Defaults of flags by --recipe. Learning rate, batch and epochs are each script's own. "strong" is,
# but for a longer warm-up, what the best training of the small network had; see the README.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "strong": {
        "nesterov": True,
        "warmup_epochs": 1,
        "drop_path_prob": 0.0,
        "affine": 0.1,
        "ema": 0.999,
    },
}


def recipe_parser() -> argparse.ArgumentParser:
    """The flags that improve on the published training, all off by default, as a parent parser."""
    parser = argparse.ArgumentParser(add_help=False)
    # fmt: off
    add = parser.add_argument_group("the recipe").add_argument
    strong = " ".join(f"--{name} {value}" for name, value in RECIPES["strong"].items())
    add("--recipe", choices=RECIPES, default="paper",
        help=f"other defaults for flags of training; strong is {strong.replace(' True', '')} "
        "(default: paper, what was published)")
    add("--label_smoothing", type=arguments.fraction, default=0.0, metavar="E",
        help="share of each label that is spread over all classes (default: 0, as published)")
    add("--affine", type=arguments.fraction, default=0.0, metavar="A",
        help="shift training images by up to A of their side, scale by 1-A to 1+A, rotate by up to "
        "50 A degrees (default: 0, as published)")
    add("--erasing", type=arguments.fraction, default=0.0, metavar="P",
        help="probability of erasing a random rectangle of a training image (default: 0, as "
        "published)")
    add("--mixup", type=arguments.non_negative, default=0.0, metavar="ALPHA",
        help="blend each training image with another by a share drawn from Beta(ALPHA, ALPHA) "
        "(default: 0, off, as published)")
    add("--cutmix", type=arguments.non_negative, default=0.0, metavar="ALPHA",
        help="paste a rectangle of another training image into each; with --mixup a coin decides "
        "for each batch (default: 0, off, as published)")
    add("--mix_off_epochs", type=arguments.count, metavar="N",
        help="last epochs without --mixup and --cutmix, fewer than --epochs; labels are repaired "
        "only in epochs without (default: a tenth of --epochs, so that training ends on faces)")
    add("--ema", type=arguments.fraction, default=0.0, metavar="DECAY",
        help="keep an exponential moving average of weights and batch-norm statistics, step by "
        "step, the decay after n steps being at most (1+n)/(10+n); it is what is evaluated and "
        "saved as weights (default: 0, off, as published)")
    # fmt: on
    return parser


def fit_arguments(
    args: argparse.Namespace,
    *,
    teaching: Mapping[str, Any] | None = None,
    jitter: float = 0.0,
) -> dict[str, Any]:
    """What `engine.fit` takes from all the flags of training; `jitter` is the script's own.

    `teaching` is what a teacher adds to the loss, see `common.teacher`.
    """
    usual = arguments.augmentation(args, jitter=jitter)
    mix = mixing(mixup=args.mixup, cutmix=args.cutmix)
    sides = [side for side, n in zip(args.sizes, args.size_epochs, strict=True) for _ in range(n)]
    off = args.epochs // 10 if args.mix_off_epochs is None else args.mix_off_epochs
    return {
        **arguments.fit_arguments(args),
        "augmentation": replace(usual, affine=args.affine, erasing=args.erasing),
        "criterion_for": objective(label_smoothing=args.label_smoothing, **(teaching or {})),
        "size_at": lambda epoch: sides[epoch] if sides else None,
        "mix_at": lambda epoch: mix if epoch < args.epochs - off else None,
    }


class Average(AveragedModel):
    """A network's moving average, batch-norm statistics included: e = d e + (1 - d) w at each step.

    d = min(decay, (1 + n) / (10 + n)) after n steps, the first of which is copied, as integers are.
    It rises, as TensorFlow's ExponentialMovingAverage has it, so that the first weights and
    variances, far from any later ones, are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards `model`; torch's own waits for the device twice a step."""
        steps = int(self.n_averaged)  # on the CPU, wherever the network is
        share = 1.0 if steps == 0 else max(1 - self.decay, 9 / (10 + steps))
        averages = [*self.module.parameters(), *self.module.buffers()]
        values = [*model.parameters(), *model.buffers()]
        moving: tuple[list[Tensor], list[Tensor]] = ([], [])
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                moving[0].append(average)
                moving[1].append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(*moving, share)
        self.n_averaged += 1


def averaged(model: nn.Module, decay: float) -> Average | None:
    """The average of `model` over the steps to come; None without a decay."""
    return None if decay == 0 else Average(model, decay)
