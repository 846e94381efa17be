"""torch.compile of a network for whole batches, and CUDA graphs of the steps of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from runtime.errors import is_out_of_memory
from runtime.logs import log

Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]
Batch = tuple[Tensor, Tensor]
Outputs = TypeVar("Outputs")
# Captures a function without arguments, in the memory of an earlier graph unless that is None.
# Returns the graph, whose `replay()` computes the function, and the outputs that it writes to.
Capture = Callable[[Callable[[], Outputs], Any], tuple[Any, Outputs]]


def compiled(model: nn.Module, batch_size: int, device: torch.device) -> Forward:
    """`model` compiled by torch.compile for whole batches; smaller batches run uncompiled.

    On CUDA forward and backward pass run as CUDA graphs: logits and gradients of a step are valid
    until the next call. Where compilation is not possible, a warning says so and all batches run
    uncompiled.
    """
    graphs = device.type == "cuda"
    fast: Forward | None = None

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        nonlocal fast
        if fast is model or len(images) != batch_size:
            return model(images)
        first = fast is None
        try:
            if fast is None:
                mode = "reduce-overhead" if graphs else None
                fast = torch.compile(model, dynamic=False, mode=mode)
            if graphs:
                torch.compiler.cudagraph_mark_step_begin()
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


def capture_graph(function: Callable[[], Outputs], earlier: Any) -> tuple[Any, Outputs]:
    """`Capture` by a CUDA graph. `function` must not wait for the device or draw random numbers."""
    graph = torch.cuda.CUDAGraph()
    pool = None if earlier is None else earlier.pool()
    # Under torchrun a thread of NCCL asks for events, which "global" takes for a fault.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        outputs = function()
    return graph, outputs


def graph_capture(device: torch.device) -> Capture | None:
    """`capture_graph` on CUDA; None elsewhere, with a warning."""
    if device.type == "cuda":
        return capture_graph
    log.warning("--compile: captures the steps of a search on CUDA only, going on without")
    return None


class StepGraphs:
    """Runs functions from a batch to tensors, for whole batches as graphs.

    After `begin` the first whole batch of a function runs plainly, which prepares libraries and
    memory, and counts as any other. At the second the function is captured, which computes nothing;
    this batch and all later ones are copied to where the graph reads them, and replayed. So
    batch-norm statistics change once for each batch. What `run` returns is valid until any function
    runs again, as the graphs share their memory. Without `capture` all batches run plainly.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture
        self._key: Any = None
        self._warm: set[Any] = set()
        self._graphs: dict[Any, tuple[Any, Batch, Any]] = {}

    def begin(self, batch_size: int, states: Mapping[str, Sequence[int]]) -> None:
        """Before an epoch: drop the graphs if the size of whole batches or the edges changed."""
        key = batch_size, *map(tuple, states.values())
        if key != self._key:
            self._key, self._warm, self._graphs = key, set(), {}

    def run(self, function: Callable[[Batch], Outputs], batch: Batch) -> Outputs:
        """function(batch), with `batch` images (B, 1, H, W) and labels (B,)."""
        if self._capture is None or self._key is None or len(batch[1]) != self._key[0]:
            return function(batch)
        if function not in self._warm:
            self._warm.add(function)
            return function(batch)
        if function not in self._graphs:
            read = batch[0].clone(), batch[1].clone()
            earlier = next((graph for graph, _, _ in self._graphs.values()), None)
            graph, outputs = self._capture(partial(function, read), earlier)
            self._graphs[function] = graph, read, outputs
        graph, read, outputs = self._graphs[function]
        for fixed, value in zip(read, batch, strict=True):
            fixed.copy_(value)
        graph.replay()
        return outputs
