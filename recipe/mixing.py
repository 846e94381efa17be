"""Mixup and CutMix: mixed images, whose targets are shares of two classes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing(mixup: float, cutmix: float, num_classes: int) -> Mix | None:
    """A function from images (B, 1, H, W) and labels int64 (B,) to mixed images and targets.

    Targets are float32 (B, num_classes). Each image is mixed with its neighbour in the shuffled
    batch, by one share for all, drawn from Beta(a, a): blended with a = `mixup` (Zhang et al.,
    2018), or with a rectangle of it pasted in with a = `cutmix` (Yun et al., 2019); if both are
    positive, one of them is chosen at random for each batch. Returns None if both are 0. Draws
    from torch's CPU generator on every device.
    """
    if mixup == cutmix == 0:
        return None
    # Imported here, as it takes longer than a run without it takes to start.
    from torchvision.transforms import v2

    kinds = {v2.MixUp: mixup, v2.CutMix: cutmix}
    chosen = [kind(alpha=a, num_classes=num_classes) for kind, a in kinds.items() if a > 0]
    return v2.RandomChoice(chosen) if len(chosen) == 2 else chosen[0]
