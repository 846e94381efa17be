"""Shares of the time of our search step, training step and evaluation by kind of operation.

    python -m benchmarks.profile

Prints a table, and how fast convolutions are beside products of matrices.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import CASES, Setup, Step, wait_for
from common import arguments
from common.cli import run_script
from common.report import format_table
from common.start import resolve_device
from runtime.logs import describe_machine
from runtime.run import autocast
from utils import seed_everything

# Operators by parts of their names; the first kind that matches counts.
KINDS = {
    "convolutions": ("conv",),
    "batch norms": ("batch_norm",),
    "pools": ("pool", "mean"),
    "sums, products, ReLUs": ("add", "mul", "relu", "threshold", "clamp", "sub", "div", "sum"),
    "copies, joins, zeros": ("copy", "cat", "zero", "fill", "clone", "contiguous", "flip", "pad"),
}
OTHERS = "everything else"
PROFILED = ("search step, all edges open", "training step", "evaluation")


def kind_of(operator: str) -> str:
    """The kind in KINDS of an operator as the profiler names it, or OTHERS."""
    name = operator.removeprefix("aten::").lower()
    return next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), OTHERS)


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Percent of the time by kind; `seconds` by operator, without the operators that it calls."""
    total = sum(seconds.values())
    found = dict.fromkeys([*KINDS, OTHERS], 0.0)
    for operator, each in seconds.items():
        found[kind_of(operator)] += 100.0 * each / total
    return found


def profile_step(step: Step, device: torch.device) -> dict[str, float]:
    """Seconds that each operator took in a step after a first one, by name."""
    step.run()
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        step.run()
    name = "self_device_time_total" if cuda else "self_cpu_time_total"
    return {event.key: getattr(event, name) / 1e6 for event in profiled.key_averages()}


def convolution_gflop(step: Step) -> float:
    """GFLOP of the convolutions in a step; a multiplication and an addition are two FLOP."""
    with FlopCounterMode(display=False) as counter:
        step.run()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if "conv" in str(operator)) / 1e9


def matrix_gflops(device: torch.device, *, size: int = 2048, times: int = 5) -> float:
    """GFLOP/s of the fastest of `times` products of matrices: what the device can do."""
    a, b = torch.randn(2, size, size, device=device)
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        torch.mm(a, b)
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:]) / 1e9


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m benchmarks.profile")
    parser.add_argument("--short", action="store_true", help="small networks, seconds in all")
    arguments.add_device_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print the table and return the shares in percent by case and kind."""
    device = resolve_device(args)
    seed_everything(0)
    setup = Setup("ours", args.short, device, autocast(device, "off"))
    steps = {case: CASES[case].build(setup) for case in PROFILED}
    seconds = {case: profile_step(step, device) for case, step in steps.items()}
    found = {case: shares(each) for case, each in seconds.items()}
    total = {case: sum(each.values()) for case, each in seconds.items()}
    rows: list[list[Any]] = [
        [kind, *(f"{found[case][kind]:.1f}" for case in PROFILED)] for kind in [*KINDS, OTHERS]
    ]
    rows.append(["seconds of a step", *(f"{total[case]:.2f}" for case in PROFILED)])
    in_convolutions = total["evaluation"] * found["evaluation"]["convolutions"] / 100.0
    rate = convolution_gflop(steps["evaluation"]) / in_convolutions
    print(describe_machine(device))
    print(f"\n{format_table(['share of the time in %', *PROFILED], rows)}\n")
    print(
        f"GFLOP/s: {rate:.0f} in the convolutions of evaluation, {matrix_gflops(device):.0f} in "
        "products of large matrices"
    )
    return found


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
