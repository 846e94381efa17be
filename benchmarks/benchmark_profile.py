"""Where the time of a step goes, by kind of operation, for our side of each measurement."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import benchmark_step
from benchmarks.benchmark_pairs import PARTED, works
from benchmarks.benchmark_parts import take_turns, wait_for
from benchmarks.benchmark_works import WORKS, Step

# Operators by a part of their names; the first that fits counts.
KINDS = {
    "convolutions": ("conv",),
    "batch norms": ("batch_norm",),
    "pools": ("pool", "mean"),
    "sums, products, ReLUs": ("add", "mul", "relu", "threshold", "clamp", "sub", "div", "sum"),
    "copies, joins, zeros": ("copy", "cat", "zero", "fill", "clone", "contiguous", "flip", "pad"),
}
OTHERS = "everything else"
RATE = "GFLOP/s of convolutions"
COLUMNS = ("share of the time in %", *PARTED)


def kind_of(operator: str) -> str:
    """The kind of KINDS that an operator as the profiler names it is of, or OTHERS."""
    name = operator.removeprefix("aten::").lower()
    return next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), OTHERS)


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Percent of all time by kind, from the seconds that each operator itself took."""
    total = sum(seconds.values())
    found = dict.fromkeys([*KINDS, OTHERS], 0.0)
    for operator, each in seconds.items():
        found[kind_of(operator)] += 100.0 * each / total
    return found


def profile_step(work: str, *, short: bool, device: torch.device) -> dict[str, float]:
    """Seconds that each operator took in a step of `work` after a first one, by name."""
    step = _step(work, short=short, device=device)
    step.run()
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        step.run()
    time = "self_device_time_total" if cuda else "self_cpu_time_total"
    return {event.key: getattr(event, time) / 1e6 for event in profiled.key_averages()}


def gflop_of_convolutions(work: str, *, short: bool, device: torch.device) -> float:
    """GFLOP of the convolutions in a step of `work`; a product and a sum are two FLOP."""
    step = _step(work, short=short, device=device)
    with FlopCounterMode(display=False) as counter:
        step.run()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if "conv" in str(operator)) / 1e9


def _step(work: str, *, short: bool, device: torch.device) -> Step:
    flags = f"{works(short=short)[work]} --device {device}"
    args = benchmark_step.build_parser().parse_args(shlex.split(flags))
    return WORKS[work](benchmark_step.setup(args, device))


def matrix_product(device: torch.device, *, size: int = 2048, times: int = 5) -> float:
    """GFLOP/s of the fastest of some products of square matrices: what the device can do."""
    a, b = torch.randn(2, size, size, device=device)

    def product() -> None:
        torch.mm(a, b)
        wait_for(device)

    (seconds,) = take_turns(times, {"product": product}).values()
    return 2 * size**3 / min(seconds) / 1e9


def rows(*, short: bool, device: torch.device) -> list[list[Any]]:
    """Rows of COLUMNS: the share of each kind in each of PARTED, and the seconds in all.

    At last the GFLOP/s of evaluation's convolutions; those of a step are in part gradients.
    """
    sizes = {"short": short, "device": device}
    found = {work: profile_step(work, **sizes) for work in PARTED}
    parts = {work: shares(seconds) for work, seconds in found.items()}
    total = {work: sum(seconds.values()) for work, seconds in found.items()}
    in_convolutions = total["evaluate"] * parts["evaluate"]["convolutions"] / 100.0
    rate = f"{gflop_of_convolutions('evaluate', **sizes) / in_convolutions:.0f}"
    return [
        *([kind, *(f"{parts[work][kind]:.1f}" for work in PARTED)] for kind in [*KINDS, OTHERS]),
        ["seconds a step", *(f"{total[work]:.2f}" for work in PARTED)],
        [RATE, *(rate if work == "evaluate" else "" for work in PARTED)],
    ]
