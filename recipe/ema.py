"""The moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class ModelEma(AveragedModel):
    """Exponential moving average of a network, batch-norm statistics included.

    e = d e + (1 - d) w after each step, with d = min(decay, (1 + n) / (10 + n)) after n steps as in
    TensorFlow's ExponentialMovingAverage, so that the first weights and variances are soon
    forgotten. The first step is copied, as are integers.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards `model`, without waiting for the device as torch's own method does."""
        steps = int(self.n_averaged)  # on the CPU, wherever the network is
        share = 1.0 if steps == 0 else max(1 - self.decay, 9 / (10 + steps))
        averages = [*self.module.parameters(), *self.module.buffers()]
        values = [*model.parameters(), *model.buffers()]
        moving: tuple[list[Tensor], list[Tensor]] = ([], [])
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                moving[0].append(average)
                moving[1].append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(*moving, share)
        self.n_averaged += 1
