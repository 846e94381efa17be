"""The loss of training: cross entropy, label smoothing, distillation."""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor
from torch.nn import functional as F


def objective(
    logits: Tensor, targets: Tensor, args: Namespace, taught: Tensor | None = None
) -> Tensor:
    """What training minimises: cross entropy, smoothed, and distillation where there is a teacher.

    `logits` and `taught`, the teacher's, are (B, K); `targets` int64 (B,) or shares of the classes
    (B, K). --label_smoothing of each target is spread over all classes (Szegedy et al., 2016);
    with `taught` the loss is (1 - w) times that plus w times `distillation`, w = --teacher_weight.
    """
    hard = F.cross_entropy(logits, targets, label_smoothing=args.label_smoothing)
    if taught is None:
        return hard
    return torch.lerp(hard, distillation(logits, taught, args.temperature), args.teacher_weight)


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(logits / T)), mean over the batch.

    Both (B, K); T^2 keeps the gradient as large as that of the labels (Hinton et al., 2015).
    """
    given, wanted = (F.log_softmax(each / temperature, dim=1) for each in (logits, taught))
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
