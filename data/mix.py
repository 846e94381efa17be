"""Mixed batches: mixup and CutMix, whose targets are shares of two classes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from data.fer2013 import CLASSES

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing(*, mixup: float, cutmix: float) -> Mix | None:
    """Images (B, 1, H, W) and labels int64 (B,) to mixed images and targets float32 (B, 7).

    Each image is mixed with its neighbour in the shuffled batch, by one share for all, drawn from
    Beta(a, a): blended with a = `mixup` (Zhang et al., 2018), or with a rectangle of it pasted in
    with a = `cutmix` (Yun et al., 2019), whichever of both a coin says. 0 turns one off; None
    where both are. Draws from torch's CPU generator alone, on every device.
    """
    if mixup == cutmix == 0:
        return None
    # Only now, as it takes longer to import than a run without it takes to start.
    from torchvision.transforms import v2

    kinds = {v2.MixUp: mixup, v2.CutMix: cutmix}
    chosen = [kind(alpha=a, num_classes=len(CLASSES)) for kind, a in kinds.items() if a > 0]
    return v2.RandomChoice(chosen) if len(chosen) == 2 else chosen[0]
