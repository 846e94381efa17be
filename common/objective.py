"""What training minimises: cross entropy, label smoothing, and distillation from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import Criterion


def objective(
    *,
    label_smoothing: float,
    teacher: Callable[[Tensor], Tensor] | None = None,
    temperature: float = 1.0,
    teacher_weight: float = 0.0,
) -> Callable[[Tensor], Criterion]:
    """The `criterion_for` of `engine.fit`: from the images of a batch to what is minimised on it.

    That is cross entropy with targets of which `label_smoothing` is spread over all classes alike
    (Szegedy et al., 2016); with a `teacher`, from images to logits, (1 - w) times that plus w times
    `distillation`, w being `teacher_weight`. The teacher sees the images as they are trained on.
    """
    hard = partial(F.cross_entropy, label_smoothing=label_smoothing)
    if teacher is None:
        return lambda _images: hard

    def criterion_for(images: Tensor) -> Criterion:
        with torch.no_grad():
            taught = teacher(images).float()

        def criterion(logits: Tensor, targets: Tensor) -> Tensor:
            soft = distillation(logits, taught, temperature)
            return torch.lerp(hard(logits, targets), soft, teacher_weight)

        return criterion

    return criterion_for


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(logits / T)), mean over the batch.

    Both (B, K); T^2 keeps the gradient as large as that of the labels (Hinton et al., 2015).
    """
    given, wanted = (F.log_softmax(each / temperature, dim=1) for each in (logits, taught))
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
