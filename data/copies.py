"""Test images that are in Training too: FER2013 holds 568 of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from data.types import Split


def mark_copies(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits, with `copies` of all but Training: what is pixel for pixel in Training."""
    training = splits["Training"]
    return {
        name: split if split is training else replace(split, copies=_among(split, training))
        for name, split in splits.items()
    }


def drop_copies(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits, with a Training of the images that are in no other split."""
    training = splits["Training"]
    known = torch.zeros(len(training.images), dtype=torch.bool)
    for name, split in splits.items():
        if name != "Training":
            known |= _among(training, split)
    kept = (~known).nonzero().squeeze(1)
    return mark_copies({**splits, "Training": training.map(lambda tensor: tensor[kept])})


def _among(split: Split, other: Split) -> Tensor:
    """Which images of `split` are pixel for pixel among those of `other`: bool (N,)."""
    known = {image.tobytes() for image in other.images.numpy()}
    return torch.tensor([image.tobytes() in known for image in split.images.numpy()])
