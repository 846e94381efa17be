"""Images that stand in two splits: FER2013 holds test images that are also in Training."""

from __future__ import annotations

import torch
from torch import Tensor

from data.types import Split


def copies(split: Split, training: Split) -> Tensor:
    """Which images of `split` are pixel for pixel among those of `training`: bool (N,)."""
    known = {image.tobytes() for image in training.images.numpy()}
    return torch.tensor([image.tobytes() in known for image in split.images.numpy()])
