"""Speed and peak memory of our loops beside a plain implementation.

    python -m benchmarks.speed
    python -m benchmarks.speed --short --only "search step" --rounds 3
    python -m benchmarks.speed --gpu

Each variant of a case runs in a process of its own, so that its peak memory is its own. The
variants take turns, round after round, and ratios are of two variants in the same round, so that
other work on the machine affects both. Prints a table and writes JSON. --gpu measures what a GPU is
used for, in one process, as starting many takes too long, and within minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.cases import ALL_CASES, CASES, GPU_CASES, Setup
from common import arguments
from common.cli import run_script
from common.report import format_table
from common.start import describe_commit, resolve_device
from runtime.errors import UserError, is_out_of_memory
from runtime.files import make_folder, write_text
from runtime.logs import describe_machine
from runtime.run import autocast
from runtime.startup import keep_freed_memory
from utils import seed_everything

COLUMNS = (
    "case", "variant", "images", "seconds", "images/s", "peak GB", "compared with",
    "times as fast", "memory",
)  # fmt: skip


def measure(case: str, variant: str, *, short: bool, device: str, steps: int) -> dict[str, Any]:
    """Measure a variant in this process: `seconds` of each step after a first one, or the three of
    compiling, the `images` of a step, and `peak_bytes`: of tensors on CUDA, else of the process
    with its libraries (on Linux).
    """
    seed_everything(0)
    where = torch.device(device)
    if where.type == "cuda":
        gc.collect()  # of the case before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)
    setup = Setup(variant, short, where, autocast(where, "bf16" if "bf16" in variant else "off"))
    step, images = ALL_CASES[case].build(setup)
    untimed = 3 if setup.compiles else 1
    seconds = []
    for _ in range(untimed + steps):
        started = time.perf_counter()
        step()
        if where.type != "cpu":
            getattr(torch, where.type).synchronize()
        seconds.append(time.perf_counter() - started)
    if variant.endswith("compiled"):
        torch.compiler.reset()
    return {"seconds": seconds[untimed:], "images": images, "peak_bytes": _peak_bytes(where)}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not ru_maxrss, which on Linux begins at the peak of the process that started this one.
    return 1024 * int(_search(r"VmHWM:\s*(\d+)", "/proc/self/status") or 0)


def _search(pattern: str, path: str) -> str | None:
    """The group of the first match in a file of Linux; None elsewhere."""
    match = re.search(pattern, Path(path).read_text("utf-8")) if os.path.isfile(path) else None
    return match[1] if match else None


def measure_apart(**options: Any) -> dict[str, Any]:
    """`measure` in a process of its own."""
    prepare = None if options["variant"] == "plain" else keep_freed_memory
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare) as pool:
        return pool.submit(measure, **options).result()


def measure_case(case: str, variants: Sequence[str], rounds: int, **options: Any) -> list[dict]:
    """A row for each variant: its measurements of `rounds` rounds in which they take turns."""
    rows: list[dict[str, Any]] = [
        {"case": case, "variant": name, "rounds": []} for name in variants
    ]
    for number in range(rounds):
        for row in rows:
            print(f"{case}, {row['variant']}, round {number + 1} of {rounds}", flush=True)
            row["rounds"].append(measure_apart(case=case, variant=row["variant"], **options))
    return rows


def measure_gpu(cases: Sequence[str], minutes: float, **options: Any) -> Iterator[list[dict]]:
    """A row of one round for each variant of `cases`, all in this process.

    After `minutes` further ones are skipped. Last come those that are compiled, which takes most of
    a minute each, batches of 64 and 512 before others.
    """
    pairs = [(case, variant) for case in cases for variant in GPU_CASES[case].variants]
    pairs.sort(key=lambda p: p[1].endswith("compiled") * (2 - p[0].endswith((" 64", " 512"))))
    end = time.monotonic() + 60 * minutes
    for case, variant in pairs:
        if time.monotonic() >= end:
            print(f"{case}, {variant}: skipped, as {minutes:g} minutes have passed", flush=True)
            continue
        print(f"{case}, {variant}", flush=True)
        try:
            found = measure(case, variant, **options)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            print(f"{case}, {variant}: skipped, out of memory", flush=True)
        else:
            yield [{"case": case, "variant": variant, "rounds": [found]}]


def format_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for docs/speed.md."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows as text, in COLUMNS: medians, and the ratio of speeds with its range."""
    measured = {
        (row["case"], row["variant"]): (
            np.array([median(r["seconds"]) for r in row["rounds"]]),
            np.array([r["peak_bytes"] for r in row["rounds"]]),
        )
        for row in rows
    }
    table = []
    for row in rows:
        case, variant, images = row["case"], row["variant"], row["rounds"][0]["images"]
        seconds, peaks = measured[case, variant]
        cells = [case, variant, str(images)]
        for value in (np.median(seconds), np.median(images / seconds)):
            cells.append(f"{value:.0f}" if value >= 100 else f"{value:#.3g}")
        cells.append(f"{np.median(peaks) / 1e9:.2f}")
        base = ALL_CASES[case].variants[variant]
        if base is not None and (case, base) in measured:
            times, memory = measured[case, base][0] / seconds, peaks / measured[case, base][1]
            ratio = f"{np.median(times):.2f} ({times.min():.2f} to {times.max():.2f})"
            cells += [base, ratio, f"{np.median(memory):.2f}"]
        table.append(cells + [""] * (len(COLUMNS) - len(cells)))
    return table


# --- the command


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m benchmarks.speed")
    # fmt: off
    add = parser.add_argument
    add("--short", action="store_true",
        help="small networks, a few seconds a case, to see that everything runs")
    add("--rounds", type=arguments.positive_int, metavar="N",
        help="rounds in which the variants take turns (default: 5, or 1 with --short)")
    add("--steps", type=arguments.positive_int, default=3, metavar="N",
        help="steps to time in each process, after a first one")
    add("--only", default="", metavar="TEXT", help="only cases whose names contain TEXT")
    add("--out", default="bench/speed.json", metavar="FILE", help="where the JSON is written")
    add("--gpu", action="store_true",
        help="the cases for a GPU, in one process and one round: training in batches of 24 to 512, "
        "the search, evaluation, in fp32 and bf16, with and without --compile")
    add("--minutes", type=arguments.positive_float, default=5.0, metavar="M",
        help="time after which --gpu starts no further case")
    # fmt: on
    arguments.add_device_argument(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the cases, print the table and return the content of --out."""
    known = GPU_CASES if args.gpu else CASES
    cases = [case for case in known if args.only in case]
    if not cases:
        raise UserError(f"--only {args.only}: in no name of {'; '.join(known)}")
    make_folder("--out", str(Path(args.out).parent))
    device = resolve_device(argparse.Namespace(device=args.device, gpu=None))
    rounds = 1 if args.gpu else args.rounds or (1 if args.short else 5)
    report: dict[str, Any] = {
        "commit": describe_commit() or "unknown",
        "processor": f"{os.cpu_count()} x {_search('model name.*: (.*)', '/proc/cpuinfo')}",
        "machine": describe_machine(device),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "flags": vars(args),
        "rounds": rounds,
        "rows": [],
    }
    print("\n".join(report[name] for name in ("commit", "processor", "machine")))
    options = {"short": args.short, "device": str(device), "steps": args.steps}
    if args.gpu:
        measured: Iterator[list[dict]] = measure_gpu(cases, args.minutes, **options)
    else:
        measured = (measure_case(c, list(CASES[c].variants), rounds, **options) for c in cases)
    for rows in measured:
        report["rows"] += rows
        write_text(args.out, json.dumps(report, indent=1) + "\n")  # kept if a later case fails
    report["rows"].sort(key=lambda row: cases.index(row["case"]))
    form = format_markdown if args.gpu else format_table
    print(f"\n{form(COLUMNS, table_rows(report['rows']))}\n")
    print(f"times as fast: median of {rounds} rounds (min to max); written: {args.out}")
    return report


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
