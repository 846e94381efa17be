"""torch.compile for whole batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from runtime.errors import is_out_of_memory
from runtime.logs import log

Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def compiled(model: nn.Module, batch_size: int) -> Forward:
    """`model` compiled by torch.compile for whole batches; smaller batches run uncompiled.

    Where compilation is not possible, a warning says so and all batches run uncompiled.
    """
    fast: Forward | None = None

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        nonlocal fast
        if fast is model or len(images) != batch_size:
            return model(images)
        first = fast is None
        try:
            if fast is None:
                fast = torch.compile(model, dynamic=False)
            return fast(images)
        except Exception as error:
            # After a first success only errors of the compiler are no reason to stop.
            compiler = first or type(error).__module__.startswith("torch._")
            if not compiler or is_out_of_memory(error):
                raise
            fast = model
            reason = " ".join(str(error).split())[:200]
            log.warning("--compile: not possible here, going on without (%s)", reason)
            return model(images)

    return forward
