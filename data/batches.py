"""Batches of images and labels, shuffled and augmented or in order; subsamples.

All random numbers of an epoch are drawn at its start, one set per image, from a CPU generator
seeded by (seed, stream, epoch). So augmentation does not depend on the device or the batch size,
and a run that is resumed in the middle of an epoch continues with the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from data.augment import Augmentation, augment, draw, to_float
from data.types import Split
from utils import derive_seed

# The random streams of a run, which share no numbers.
WEIGHTS_STREAM, ALPHAS_STREAM = 0, 1
# Images augmented at a time: enough that the cost of starting an operation is negligible; 32 MB of
# float32 pixels.
CHUNK = 4096


def training_batches(
    split: Split,
    *,
    batch_size: int,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    stream: int = WEIGHTS_STREAM,
    first_step: int = 0,
    limit: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, augmented batches of one epoch, from batch `first_step` on.

    Yields float32 (B, 1, crop, crop) and int64 (B,) on the split's device; the last batch may be
    smaller. Where the split has groups, each is a batch, whatever its size. `limit` ends the epoch
    after that many batches.
    """
    count, device = len(split.images), split.images.device
    generator = torch.Generator().manual_seed(derive_seed(seed, stream, epoch))
    order = torch.randperm(count, generator=generator)
    batches: Sequence[Tensor] = order.split(batch_size)
    if split.groups is not None:
        groups = split.groups.cpu()
        names = groups.unique()
        names = names[torch.randperm(len(names), generator=generator)]
        batches = [order[groups[order] == name] for name in names]
    draws = draw(augmentation, count, split.images.shape[-1], generator).to(device)
    steps_at_once = max(1, CHUNK // batch_size)
    last_step = count_steps(split, batch_size, limit)
    for step in range(first_step, last_step, steps_at_once):
        chunk = batches[step : min(step + steps_at_once, last_step)]
        index, sizes = torch.cat(list(chunk)).to(device), [len(rows) for rows in chunk]
        images = augment(split.images[index], draws.take(index), augmentation)
        yield from zip(images.split(sizes), split.labels[index].split(sizes), strict=True)


def evaluation_batches(split: Split, *, batch_size: int) -> Iterator[Tensor]:
    """The whole images in order, float32 (B, 1, H, W) in [0, 1]."""
    for rows in split.images.split(batch_size):
        yield to_float(rows)


def subsample(split: Split, count: int | None) -> Split:
    """At most `count` images of the split, evenly spaced, as splits are often sorted by class."""
    if count is None or count >= len(split.images):
        return split
    rows = torch.arange(len(split.images), device=split.images.device)
    return replace(split.take(subsample_rows(rows, count)), total=len(rows))


def subsample_rows(rows: Tensor, count: int | None) -> Tensor:
    """At most `count` of `rows` (N,), evenly spaced and in order."""
    total = len(rows)
    if count is None or count >= total:
        return rows
    return rows[torch.arange(count, device=rows.device) * total // count]


def count_steps(split: Split, batch_size: int, limit: int | None = None) -> int:
    """The number of `training_batches` of an epoch."""
    if split.groups is None:
        return count_batches(len(split.images), batch_size, limit)
    return count_batches(len(split.groups.unique()), 1, limit)


def count_batches(count: int, batch_size: int, limit: int | None = None) -> int:
    """The number of batches of `count` images, at most `limit`."""
    batches = -(-count // batch_size)
    return batches if limit is None else min(batches, limit)
