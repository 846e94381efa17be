"""Runs of several processes for the tests, and what their oracles share.

An oracle is one process that computes the shards of a batch one after the other.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import LIMIT, command

from benchmarks.runs import Child
from data import augment, batches

# 77 images: batches of 12 and a last one of 5, of which the third of three processes gets none.
EACH = 11
TRAIN = (
    "train_FER2013.py --data {data} --arch --init_channels 4 --layers 3 --epochs 3 --batch_size 12 "
    "--drop_path_prob 0.5 --mixup 0.4 --mix_off_epochs 1 --ema 0.6 --report_freq 1 --device cpu "
    "--amp off --model_path {out}"
).split()


def in_double() -> None:
    """Compute in float64 from here on: in float32 the order of three summands grows to 1e-3."""
    torch.set_default_dtype(torch.float64)
    augment.to_float = batches.to_float = lambda images: images.double() / 255


def start(
    words: list[str],
    count: int,
    folder: Path,
    *,
    name: str = "rank",
    before: Callable[[], None] | None = None,
    others: list[str] | None = None,
) -> list[Child]:
    """`count` processes as torchrun would start them, `name`K.log of each in `folder`.

    `others` are the words of all but the first, where they differ.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        Child(
            others if others and k else words,
            folder / f"{name}{k}.log",
            before,
            environment={
                "RANK": str(k), "LOCAL_RANK": str(k), "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for k in range(count)
    ]  # fmt: skip


def finish(words: list[str], count: int, folder: Path, **options: Any) -> list[Child]:
    """Run to the end, every process with status 0."""
    children = start(words, count, folder, **options)
    assert [child.wait(LIMIT) for child in children] == [0] * count, [c.printed() for c in children]
    return children


def words_of(template: list[str], data: Path, out: Path, *more: str) -> list[str]:
    """`command` as `Child` takes it."""
    return command(template, data, out, *more)[1:]


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)


def parts(total: int, count: int) -> list[tuple[int, int]]:
    """First and last row of the shard of each of `count` processes that has one."""
    filled = max(1, min(count, total // 2))
    sizes = [total // filled + (k < total % filled) for k in range(filled)]
    return [(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(filled)]


def accumulate(model: torch.nn.Module, losses: list[tuple[float, Callable[[], torch.Tensor]]]):
    """Gradients and batch-norm statistics of `model`: the means over `losses`, by their weights.

    Each loss begins with the statistics that the model has now.
    """
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients: dict = {}
    after = {name: torch.zeros_like(buffer) for name, buffer in before.items()}
    for weight, loss in losses:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        model.zero_grad()
        loss().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = gradients.get(name, 0) + weight * parameter.grad
        for name, buffer in model.named_buffers():
            counts = not buffer.is_floating_point()
            after[name] = buffer.clone() if counts else after[name] + weight * buffer
    for name, parameter in model.named_parameters():
        parameter.grad = gradients.get(name)
    for name, buffer in model.named_buffers():
        buffer.copy_(after[name])
