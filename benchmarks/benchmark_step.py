"""One side of one measurement, in a process of its own so that its peak memory is its own.

    python -m benchmarks.benchmark_step search --side ours

Prints one line of JSON: the seconds of every step after the first, the images of a step, the peak
memory in bytes, what of it was there before, and remarks. `python -m benchmarks.benchmark` runs it, side
by side.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.benchmark_leads import LEADS, changed
from benchmarks.benchmark_parts import wait_for
from benchmarks.benchmark_works import COMPILABLE, SIDES, WORKS, Setup
from common import arguments, cli
from engine import autocast
from utils import LOGGER_NAME, UserError, seed_everything


class Remarks(logging.Handler):
    """Keeps what the program warns of: that nothing could be compiled, say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.benchmark_step", description=(__doc__ or "").split("\n")[0]
    )
    # fmt: off
    add = parser.add_argument
    add("work", choices=list(WORKS), help="what to measure")
    add("--side", choices=SIDES, default="ours",
        help="the plain version, ours, or ours with --compile (default: ours)")
    add("--lead", choices=LEADS, metavar="LEAD",
        help="measure without this lead of benchmarks.benchmark_leads, or with it where it was not kept "
        "(default: the programs as they are)")
    add("--init_channels", type=arguments.positive_int, default=16, metavar="C",
        help="channels of the first cell (default: 16, the published value of the search)")
    add("--layers", type=arguments.positive_int, default=8, metavar="L",
        help="cells (default: 8, likewise)")
    add("--batch_size", type=arguments.positive_int, default=24, metavar="N",
        help="images a step (default: 24, likewise)")
    add("--decisions", type=arguments.count, default=0, metavar="N",
        help="edges of each cell that the search has decided, at most 8 (default: 0, all open)")
    add("--sample", type=arguments.positive_int, default=4000, metavar="N",
        help="drawn faces that make a pass over the data (default: 4000, seconds through PIL)")
    add("--steps", type=arguments.positive_int, default=2, metavar="N",
        help="steps to measure after a first one (default: 2, the slowest takes 20 s)")
    add("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps",
        help="where to compute (default: auto, which takes CUDA, then MPS, then the CPU)")
    add("--amp", choices=["auto", "off", "bf16"], default="off",
        help="precision of our forward pass (default: off, as the plain version always has it)")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print the line of JSON."""
    with changed(args.lead) if args.lead else nullcontext():
        found = measure(args)
    print(json.dumps(found))
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What a process finds, as `benchmarks.benchmark_pairs` reads it."""
    if args.side == "compiled" and args.work not in COMPILABLE:
        raise UserError(f"--side compiled: not of {args.work}; expected {' or '.join(COMPILABLE)}")
    device = cli.resolve_device(args.device, None)
    plain, remarks, logger = args.side == "plain", Remarks(), logging.getLogger(LOGGER_NAME)
    logger.addHandler(remarks)
    if not plain:
        cli.keep_freed_memory()
    seed_everything(0)
    base = _peak_bytes(device)
    step = WORKS[args.work](setup(args, device))
    seconds = []
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        for _ in range(step.repeats):
            step.run()
        wait_for(device)
        seconds.append((time.perf_counter() - started) / step.repeats)
    logger.removeHandler(remarks)
    return {
        "seconds": seconds[1:],
        "images": step.images,
        "peak_bytes": _peak_bytes(device),
        "base_bytes": base,
        "remarks": remarks.lines,
    }


def setup(args: argparse.Namespace, device: torch.device) -> Setup:
    """The side and the sizes that the flags ask for."""
    return Setup(
        args.side,
        args.init_channels,
        args.layers,
        args.batch_size,
        args.decisions,
        args.sample,
        device,
        autocast(device, "off" if args.side == "plain" else args.amp),
    )


def _peak_bytes(device: torch.device) -> int:
    """The most that this process has held so far: tensors on CUDA, everything elsewhere.

    On the CPU that begins with the libraries, which are alike on all sides.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not ru_maxrss, which on Linux begins at the peak of the process that started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    parser = build_parser()
    try:
        main(parser.parse_args())
    except UserError as error:
        parser.error(str(error))
