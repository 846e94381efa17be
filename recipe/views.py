"""Test-time augmentation: the mean prediction over several views of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from data.augment import CROP

TTA = ("none", "flip", "tencrop")


def views(images: Tensor, tta: str) -> tuple[Tensor, ...]:
    """The views of float32 (B, 1, 48, 48): "none" the image itself, "flip" its mirror image too.

    "tencrop": the four corners and the centre of 44x44, and the mirror images of the five
    (Krizhevsky et al., 2012).
    """
    if tta == "none":
        return (images,)
    # Imported here, as it takes longer than a run without it takes to start.
    from torchvision.transforms.functional import hflip, ten_crop

    return ten_crop(images, CROP) if tta == "tencrop" else (images, hflip(images))


def tta_predict(predict: Callable[[Tensor], Tensor], tta: str) -> Callable[[Tensor], Tensor]:
    """`predict`, from images to logits, as the mean of the logits over the views of each image.

    The mean is of logits, as in the ensemble, so that views of several networks may be averaged in
    any order.
    """
    if tta == "none":
        return predict
    return lambda images: torch.stack([predict(v).float() for v in views(images, tta)]).mean(dim=0)
