"""Several processes that train as one, as torchrun starts them.

All of them call these functions, in the same order. Where there is one process, a function returns
at once what it was given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runtime.errors import PeerLost, describe_error, is_out_of_memory

Value = TypeVar("Value")
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Shard:
    """A process's part of N images: `rows`, `count` of them, `weight` = count / N.

    A process for which none are left computes the first shard with weight 0, so that it has
    gradients for the same weights as the others. `largest` is the count of the first shard.
    """

    rows: slice
    count: int
    weight: float
    largest: int


def shard_of(total: int, processes: int, number: int) -> Shard:
    """The shard of process `number` of `processes`: contiguous, as equal as possible.

    No shard is a single image, which batch norm could not normalise, unless it is the only one.
    """
    filled = max(1, min(processes, total // 2))
    size, larger = divmod(total, filled)  # the first `larger` shards have one image more
    largest = size + (larger > 0)
    if number >= filled:
        return Shard(slice(0, largest), 0, 0.0, largest)
    start = number * size + min(number, larger)
    count = size + (number < larger)
    return Shard(slice(start, start + count), count, count / max(1, total), largest)


def shard(total: int) -> Shard:
    """This process's shard of `total` images."""
    return shard_of(total, world_size(), rank())


def is_distributed() -> bool:
    """Whether this process belongs to a group, possibly as the only one."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process; 0 writes, logs and shows progress."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def hide_progress() -> bool | None:
    """The `disable` of tqdm: None, which shows a bar on a terminal, for the first process only."""
    return True if rank() > 0 else None


def describe_processes() -> str:
    """The number of processes, for lines that say what figures depend on."""
    return f", {world_size()} processes" if is_distributed() else ""


@contextmanager
def process_group() -> Iterator[Callable[[], bool]]:
    """The group in which torchrun started this process, if it did, for the length of the block.

    Yields a function that returns True for the first process to call it and False for all others,
    so that a message is printed once. Raises PeerLost when the processes cannot meet.
    """
    if not all(name in os.environ for name in _VARIABLES):
        yield lambda: True
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, number, count = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:
        raise PeerLost(f"the processes cannot meet ({describe_error(error)})") from error

    def first() -> bool:
        try:
            return store.add("auto_fernet/spoken", 1) == 1
        except RuntimeError:  # the store ended with its machine
            return True

    try:
        yield first
    finally:
        # Before torch 2.8 the end of a group waits for its threads without releasing the GIL, which
        # they need to free what was exchanged last (torch's pull request 154976).
        time.sleep(0.1)
        dist.destroy_process_group()


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLost(
            f"another process of this run has ended ({describe_error(error)})"
        ) from error


@torch.no_grad()
def average_tensors(tensors: Sequence[Tensor], weight: float) -> None:
    """Replace `tensors`, of the same shapes everywhere, by their weighted mean over the processes.

    The weights of all processes sum to one. One exchange of one flat tensor.
    """
    if not is_distributed() or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    # A shard of weight 0 may hold NaN, and NaN times zero is NaN.
    flat = flat * weight if weight else torch.zeros_like(flat)
    with _exchange():
        dist.all_reduce(flat)
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def average_gradients(model: nn.Module, weight: float) -> None:
    """Average the gradients of a step, and batch-norm statistics, over the processes.

    With `weight` that of the shard it is the gradient of the mean loss of the whole batch, except
    that batch norm normalises each shard by its own statistics. DistributedDataParallel is not
    used, as it does not see alphas, whose gradient comes from `torch.autograd.grad`.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    average_tensors([*gradients, *(b for b in model.buffers() if b.is_floating_point())], weight)


def broadcast_model(model: nn.Module) -> None:
    """Give all processes the weights of the first, as random draws may differ between machines."""
    if is_distributed():
        with _exchange():
            for tensor in model.state_dict().values():
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the processes."""
    if is_distributed():
        tensor = tensor.clone()
        with _exchange():
            dist.all_reduce(tensor)
    return tensor


def all_reduce_max(number: int) -> int:
    """The highest `number` of all processes, without waiting for a device."""
    if not is_distributed():
        return number
    highest = torch.tensor(number)
    with _exchange():
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


def gather(value: Value) -> list[Value]:
    """`value` of every process; all get all."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    with _exchange():
        dist.all_gather_object(values, value)
    return values


def from_rank_zero(make: Callable[[], Value]) -> Value:
    """What `make` returns on the first process, the only one that calls it."""
    return gather(make() if rank() == 0 else None)[0]  # type: ignore[return-value]


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block on the first process, then on all others."""
    if rank() > 0:
        all_reduce_max(0)
    yield
    if rank() == 0:
        all_reduce_max(0)
