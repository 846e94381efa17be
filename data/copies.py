"""Test images that are in Training too: FER2013 holds 568 of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from data.types import Split


def mark_copies(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits, with `copies` of all but Training: what is pixel for pixel in Training."""
    known = _pixels(splits["Training"])
    return {
        name: split if name == "Training" else replace(split, copies=_among(split, known))
        for name, split in splits.items()
    }


def drop_copies(splits: dict[str, Split]) -> dict[str, Split]:
    """Marked splits, with a Training of the images that are in no other split."""
    tests = [name for name in splits if name != "Training"]
    known = set().union(*(_pixels(splits[name]) for name in tests))
    kept = (~_among(splits["Training"], known)).nonzero().squeeze(1)
    unmarked = {name: replace(splits[name], copies=None) for name in tests}
    return {"Training": splits["Training"].take(kept), **unmarked}


def _pixels(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.images.numpy()}


def _among(split: Split, known: set[bytes]) -> Tensor:
    """Which images of `split` have the pixels of one of `known`: bool (N,)."""
    return torch.tensor([image.tobytes() in known for image in split.images.numpy()])
