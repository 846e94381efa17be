"""Everything measured in pairs: the plain version beside ours, each in a process of its own.

The sides of a measurement take turns, round after round, and a ratio is of two sides of one round:
what slows the machine for a while slows them alike.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from utils import UserError

ROOT = Path(__file__).resolve().parent.parent
# Batches that evaluation is tried with; the fastest is ours.
EVALUATION_BATCHES = (24, 48, 96, 192)

# The works of a network, which are looked at part by part.
PARTED = ("search", "train", "evaluate")

# What a side found, as benchmarks.benchmark_step prints it.
Found = dict[str, Any]


class Side(NamedTuple):
    """A side: `flags` of benchmarks.benchmark_step; `against` is the side that it is compared with."""

    name: str
    flags: str
    against: str | None = None


class Measurement(NamedTuple):
    """Sides that take turns."""

    title: str
    sides: Sequence[Side]


def works(*, short: bool) -> dict[str, str]:
    """The flags of benchmarks.benchmark_step by work, at the published sizes, or small ones, `short`."""
    batch, steps = (8, 1) if short else (24, 3)
    supernet = f"--init_channels {8 if short else 16} --layers {4 if short else 8}"
    network = "--init_channels 16 --layers 6" if short else "--init_channels 36 --layers 12"
    return {
        "search": f"search {supernet} --batch_size {batch} --steps {1 if short else 2}",
        "decided": f"decided {supernet} --batch_size {batch} --steps {steps}",
        "train": f"train {network} --batch_size {batch} --steps {steps}",
        "evaluate": f"evaluate {network} --batch_size {4 * batch} --steps {steps}",
        "data": f"data --batch_size 64 --steps {steps} --sample {400 if short else 4000}",
        "relabel": f"relabel --batch_size 512 --steps {steps}",
    }


def plan(*, short: bool, compile_too: bool, evaluation_batch: int) -> list[Measurement]:
    """What is measured, at the published sizes, or `short`, at small ones that take seconds."""
    flags = works(short=short)
    search, train, evaluate = flags["search"], flags["train"], flags["evaluate"]
    compiled = [Side("compiled", f"{train} --side compiled", "plain")] if compile_too else []
    fixed = Side("the fixed network", flags["decided"], "ours")
    return [
        Measurement("search step, all open", _pair(f"{search} --decisions 0")),
        Measurement("search step, half decided", _pair(f"{search} --decisions 4")),
        Measurement("search step, all decided", [*_pair(f"{search} --decisions 8"), fixed]),
        Measurement("training step", [*_pair(train), *compiled]),
        Measurement(
            "evaluation",
            [
                Side("plain", f"{evaluate} --side plain --batch_size {8 if short else 24}"),
                Side("ours", f"{evaluate} --batch_size {evaluation_batch}", "plain"),
            ],
        ),
        Measurement("data, a pass", _pair(flags["data"])),
        Measurement("relabelling, a batch", _pair(flags["relabel"])),
    ]


def _pair(flags: str) -> list[Side]:
    return [Side("plain", f"{flags} --side plain"), Side("ours", flags, "plain")]


def run_side(flags: str) -> Found:
    """Run benchmarks.benchmark_step with `flags`; UserError with its last line where it fails."""
    words = [sys.executable, "-m", "benchmarks.benchmark_step", *shlex.split(flags)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2] or "nothing said"
        raise UserError(
            f"benchmarks.benchmark_step {flags}: ended with status {done.returncode}, expected 0; "
            f"it said: {said}"
        )
    return json.loads(done.stdout)


def speed(found: Found) -> float:
    """Images a second: the median of a process's steps."""
    return found["images"] / median(found["seconds"])


def best_evaluation_batch(device: str, *, short: bool, amp: str) -> int:
    """The batch of EVALUATION_BATCHES with which we evaluate the most images a second."""
    batches = EVALUATION_BATCHES[:2] if short else EVALUATION_BATCHES
    flags = f"{works(short=short)['evaluate']} --device {device} --amp {amp}"
    return max(batches, key=lambda batch: speed(run_side(f"{flags} --batch_size {batch}")))


def measure(
    measurement: Measurement, *, device: str, amp: str, rounds: int, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows of the measurement, a side each; `report` is told of every process that is started."""
    found: dict[str, list[Found]] = {side.name: [] for side in measurement.sides}
    for turn in range(rounds):
        for side in measurement.sides:
            report(f"{device}: {measurement.title}, {side.name}, round {turn + 1} of {rounds}")
            # A side has the last word.
            found[side.name].append(run_side(f"--device {device} --amp {amp} {side.flags}"))
    return [
        {
            "device": device,
            "measurement": measurement.title,
            "side": side.name,
            "flags": side.flags,
            **summarise(found[side.name], found.get(side.against)),
            "against": side.against,
            "rounds": found[side.name],
        }
        for side in measurement.sides
    ]


def summarise(found: Sequence[Found], against: Sequence[Found] | None) -> dict[str, Any]:
    """Medians of the rounds; `times` and `memory` are ratios to `against`, round by round."""
    row: dict[str, Any] = {
        "images": found[0]["images"],
        "seconds": spread([median(each["seconds"]) for each in found]),
        "images_per_second": spread([speed(each) for each in found]),
        "peak_bytes": spread([each["peak_bytes"] for each in found]),
        "times": None,
        "memory": None,
    }
    if against is not None:
        pairs = list(zip(found, against, strict=True))
        row["times"] = spread([speed(a) / speed(b) for a, b in pairs])
        row["memory"] = spread([a["peak_bytes"] / b["peak_bytes"] for a, b in pairs])
    return row


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": median(values), "least": min(values), "greatest": max(values)}


COLUMNS = (
    "measurement", "device", "side", "images", "seconds a step", "images/s", "peak GB",
    "compared with", "times as fast", "memory",
)  # fmt: skip


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows as text, in COLUMNS: medians, and the ratios with their range."""
    return [
        [
            row["measurement"],
            row["device"],
            row["side"],
            str(row["images"]),
            _number(row["seconds"]["median"]),
            _number(row["images_per_second"]["median"]),
            f"{row['peak_bytes']['median'] / 1e9:.2f}",
            row["against"] or "",
            _range(row["times"]),
            f"{row['memory']['median']:.2f}" if row["memory"] else "",
        ]
        for row in rows
    ]


def _number(value: float) -> str:
    """Three digits that count, without an exponent for what a benchmark finds."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _range(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})"


def remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the processes warned of, each once, with where."""
    found = (
        f"{row['measurement']}, {row['side']}: {line}"
        for row in rows
        for each in row["rounds"]
        for line in each["remarks"]
    )
    return list(dict.fromkeys(found))


def describe_base(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What of a CPU's peaks is there before anything is measured: libraries, alike on all sides."""
    base = max(each["base_bytes"] for row in rows for each in row["rounds"])
    return [f"of peaks on the CPU {base / 1e9:.2f} GB are the libraries"] if base else []


def describe_processor() -> str:
    """Name and count of the processors, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} x {next(names, platform.processor() or platform.machine())}"
