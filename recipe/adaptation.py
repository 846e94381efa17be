"""Batch norms adapted to the images of one person (AdaBN)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from data.augment import to_float
from model import Network


@torch.no_grad()
def adapt_batch_norms(network: Network, images: Tensor) -> Network:
    """A copy of the network with the batch-norm statistics of `images`, uint8 (N, 1, H, W).

    Of the images and their mirror images, without labels (Li et al., "Revisiting Batch
    Normalization For Practical Domain Adaptation", 2016): transductive, as the images are those
    that are then classified.
    """
    adapted = copy.deepcopy(network).eval()
    for norm in adapted.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train()
            norm.momentum = 1.0  # the statistics become those of this batch
    both = to_float(images)
    adapted(torch.cat([both, both.flip(-1)]))
    return adapted.eval()
