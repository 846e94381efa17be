"""Several processes that train as one, started by `torchrun`: their shares and what they agree on.

A rank is one of the processes. After every step all ranks hold the same weights, batch-norm
statistics, optimiser and alphas, so that whatever follows from these needs no word between them.
Without torchrun there is one rank, and every function here returns at once what it was given.
Functions that exchange something are called by all ranks in the same order; they raise PeerLost
when another rank is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

# What torchrun tells each process; MASTER_ADDR and MASTER_PORT say where they meet.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_CPU = torch.device("cpu")

Value = TypeVar("Value")


class PeerLost(Exception):
    """Another rank has ended, or cannot be reached."""


class Share(NamedTuple):
    """A rank's part of N images: `rows`, `count` of them, `weight` = count / N.

    A rank for which nothing is left computes what rank 0 does, and none of it counts: so it has
    gradients for the same weights as the others. `largest` is the count of rank 0, the highest.
    """

    rows: slice
    count: int
    weight: float
    largest: int


def share_of(total: int, ranks: int, rank: int) -> Share:
    """The share of `rank`, one of `ranks`, of `total` images: contiguous, as equal as they go.

    No share but an only one is a single image, of which batch norm could make nothing.
    """
    filled = max(1, min(ranks, total // 2))
    each, more = divmod(total, filled)
    largest = each + (more > 0)
    if rank >= filled:
        return Share(slice(0, largest), 0, 0.0, largest)
    start = rank * each + min(rank, more)
    count = each + (rank < more)
    return Share(slice(start, start + count), count, count / max(1, total), largest)


def own_share(total: int) -> Share:
    """This rank's share of `total` images: all of them where there is one process."""
    return share_of(total, world_size(), rank())


def several() -> bool:
    """Whether this process is one of a group, be it the only one."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process; 0 is the one that writes, logs and shows progress."""
    return dist.get_rank() if several() else 0


def hidden() -> bool | None:
    """tqdm's `disable`: None, which shows a bar on a terminal, on rank 0 alone."""
    return True if rank() > 0 else None


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if several() else 1


def local(name: str) -> int:
    """torchrun's LOCAL_RANK or LOCAL_WORLD_SIZE: this process among, or all of, the machine's."""
    return int(os.environ[name])


def note() -> str:
    """How many processes there are, for lines that say what a run's figures hang on."""
    return f", {world_size()} processes" if several() else ""


@contextmanager
def group() -> Iterator[Callable[[], bool]]:
    """The group that torchrun started this process in, if it did, for as long as the block lasts.

    Yields a function that is true for the first process to call it and false for all others:
    what several have to say is said once. Raises PeerLost when the processes cannot meet.
    """
    if not all(name in os.environ for name in _VARIABLES):
        yield lambda: True
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, number, count = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:
        raise PeerLost(f"the processes cannot meet ({_first_line(error)})") from error

    def first() -> bool:
        try:
            return store.add("auto_fernet/spoken", 1) == 1
        except RuntimeError:  # the store went with its machine
            return True

    try:
        yield first
    finally:
        dist.destroy_process_group()


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(f"another process of this run has ended ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@torch.no_grad()
def average(tensors: Sequence[Tensor], weight: float) -> None:
    """Replace `tensors`, of the same shapes on all ranks, by their weighted mean over the ranks.

    The weights of all ranks sum to one. One exchange, of one flat tensor.
    """
    if not several() or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    # What counts for nothing may be anything, and a NaN times zero is one.
    flat = flat * weight if weight else torch.zeros_like(flat)
    with _exchange():
        dist.all_reduce(flat)
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def average_step(model: nn.Module, weight: float) -> None:
    """Average the gradients of a step, and the batch-norm statistics that it moved, over ranks.

    With `weight` that of the rank's share it is the gradient of the mean loss of the whole batch,
    up to batch norm, which normalises each share by its own statistics.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    average([*gradients, *(b for b in model.buffers() if b.is_floating_point())], weight)


def align(model: nn.Module) -> None:
    """Give all ranks the weights of rank 0: machines may draw random weights a bit apart."""
    if several():
        with _exchange():
            for tensor in model.state_dict().values():
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


def total(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the ranks."""
    if several():
        tensor = tensor.clone()
        with _exchange():
            dist.all_reduce(tensor)
    return tensor


def highest(number: int) -> int:
    """The highest `number` of any rank; no device is waited for."""
    if not several():
        return number
    found = torch.tensor(number)
    with _exchange():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gather(rows: Tensor) -> Tensor:
    """The CPU tensors `rows` of all ranks, one after the other; they may differ in length."""
    if not several():
        return rows
    found: list[Any] = [None] * world_size()
    with _exchange():
        dist.all_gather_object(found, rows)
    return torch.cat(found)


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` returns on rank 0, which alone calls it."""
    if not several():
        return make()
    found = [make() if rank() == 0 else None]
    with _exchange():
        dist.broadcast_object_list(found, 0, device=_CPU)
    return found[0]


def wait() -> None:
    """Return when all ranks have come here."""
    highest(0)


@contextmanager
def first_alone() -> Iterator[None]:
    """Let rank 0 through the block first, then all the others."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()
