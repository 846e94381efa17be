"""The two parts of the images of a search: one trains the weights, one the alphas."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from data.augment import Augmentation
from data.batches import ALPHAS_STREAM, count_batches, training_batches
from data.types import SPLITS, Split
from runtime.errors import UserError
from utils import derive_seed


def search_halves(
    splits: Mapping[str, Split], *, protocol: str, train_portion: float, seed: int
) -> tuple[Split, Split]:
    """Return the images that train the weights, and those that train the alphas.

    "clean": Training alone, shuffled by `seed`. "paper": all three splits in file order, test
    images included, as in the published search. The first `train_portion` is for the weights.
    Raises UserError when a part would be empty.
    """
    if protocol == "paper":
        pool = [splits[name] for name in SPLITS]
        images, labels = torch.cat([s.images for s in pool]), torch.cat([s.labels for s in pool])
        order = torch.arange(len(labels))
    else:
        images, labels = splits["Training"].images, splits["Training"].labels
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    first = int(len(labels) * train_portion)
    if not 0 < first < len(labels):
        raise UserError(
            f"--train_portion {train_portion}: {first} of {len(labels)} images for the weights; "
            "expected some, and some left for the alphas"
        )
    order = order.to(images.device)
    weights, alphas = order[:first], order[first:]
    return Split(images[weights], labels[weights]), Split(images[alphas], labels[alphas])


def alphas_batches(
    split: Split, *, batch_size: int, augmentation: Augmentation, seed: int, epoch: int, step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches for the alphas from step `step` on, endless, reshuffled each pass.

    As `training_batches`, from a random stream of its own.
    """
    first_pass, first_step = divmod(step, count_batches(len(split.images), batch_size))
    for number in itertools.count(first_pass):
        yield from training_batches(
            split,
            batch_size=batch_size,
            augmentation=augmentation,
            seed=derive_seed(seed, number),
            epoch=epoch,
            stream=ALPHAS_STREAM,
            first_step=first_step if number == first_pass else 0,
        )
