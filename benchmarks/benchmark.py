"""How fast the parts are on this machine, each beside what it replaces.

    python -m benchmarks.benchmark
    python -m benchmarks.benchmark all --compile --out FILE
    python -m benchmarks.benchmark leads
    python -m benchmarks.benchmark profile
    python -m benchmarks.benchmark data --data PATH
    python -m benchmarks.benchmark train
    python -m benchmarks.benchmark relabel
    python -m benchmarks.benchmark merged
    python -m benchmarks.benchmark start --data PATH

The first two are one: search, training, evaluation, data and relabelling, the plain version of
benchmarks.plain beside ours; they print a table and write `bench/benchmark.json`. `leads` undoes what
makes ours fast, one thing at a time, and writes `bench/leads.json`. `profile` says where the time
of a step goes; `merged` times convolutions of one source one by one and as one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import benchmark_leads, benchmark_pairs, benchmark_profile
from benchmarks.benchmark_merged import measure_merged
from benchmarks.benchmark_parts import measure_data, measure_relabel, measure_train
from benchmarks.benchmark_start import measure_start
from common import arguments, cli
from common.report import format_table
from utils import UserError, describe_machine, write_text


def build_parser() -> argparse.ArgumentParser:
    """The command line: a subcommand for each benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.benchmark",
        description=(__doc__ or "").split("\n")[0],
        epilog="Without a BENCHMARK it is 'all'; its flags: python -m benchmarks.benchmark all --help",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="BENCHMARK")
    _add_all(commands.add_parser("all", help=measure_all.__doc__, description=measure_all.__doc__))
    leads = commands.add_parser(
        "leads", help=measure_leads.__doc__, description=measure_leads.__doc__
    )
    _add_common(leads, out="bench/leads.json")
    leads.add_argument("--only", default="", metavar="TEXT",
        help="measure leads whose names contain TEXT (default: all)")  # fmt: skip
    profile = commands.add_parser(
        "profile", help=measure_profile.__doc__, description=measure_profile.__doc__
    )
    _add_sizes(profile)
    data, train, relabelling, merged, start = (
        commands.add_parser(name, help=measure.__doc__, description=measure.__doc__)
        for name, measure in COMMANDS.items()
    )
    # fmt: off
    for command, size, why in ((data, 64, "the published value"), (train, 64, "likewise"),
                               (relabelling, 512, "enough to time one"),
                               (merged, 24, "the published value"),
                               (start, 24, "likewise")):
        add = command.add_argument
        add("--batch_size", type=arguments.positive_int, default=size, metavar="N",
            help=f"images a batch (default: {size}, {why})")
        add("--rounds", type=arguments.positive_int, default=5, metavar="N",
            help="times that each side is measured (default: 5, for a median)")
        add("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps",
            help="where to compute (default: auto, which takes CUDA, then MPS, then the CPU)")

    for command in (data, start):
        command.add_argument("--data", default="data/", metavar="PATH",
            help="FER2013 as a CSV, folder or archive, a folder that holds one, or 'synthetic' "
            "(default: data/, where git ignores it)")

    add = data.add_argument
    add("--sample", type=arguments.positive_int, default=4000, metavar="N",
        help="images that go through PIL in a round (default: 4000, seconds; scaled to an epoch)")
    add("--limit_images", type=arguments.positive_int, metavar="N",
        help="at most N training images make the epoch, for a short try (default: no limit)")

    add = train.add_argument
    add("--init_channels", type=arguments.positive_int, default=16, metavar="C",
        help="channels of the first cell (default: 16, a fraction of the time of the paper's 36)")
    add("--layers", type=arguments.positive_int, default=8, metavar="L",
        help="cells (default: 8, likewise; the paper has 12)")
    add("--steps", type=arguments.positive_int, default=10, metavar="N",
        help="steps of either side in a round (default: 10, seconds on two cores)")
    add("--amp", choices=["auto", "off", "bf16"], default="auto",
        help="precision of the forward pass (default: auto, bf16 on CUDA that has it)")
    # fmt: on
    return parser


def _add_all(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, out="bench/benchmark.json")
    # fmt: off
    add = parser.add_argument
    add("--compile", action="store_true",
        help="measure training with torch.compile too (default: off, as compiling takes minutes "
        "in each round)")
    add("--amp", choices=["auto", "off", "bf16"], default="off",
        help="precision of our side (default: off, as the plain version always has it)")
    # fmt: on


def _add_common(parser: argparse.ArgumentParser, *, out: str) -> None:
    # fmt: off
    add = parser.add_argument
    add("--rounds", type=arguments.positive_int, metavar="N",
        help="times that each side is measured (default: 5, for a median; 1 with --short)")
    add("--out", default=out, metavar="FILE",
        help=f"JSON to write (default: {out}, which git ignores)")
    # fmt: on
    _add_sizes(parser)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    # fmt: off
    add = parser.add_argument
    add("--short", action="store_true",
        help="small networks and passes, a minute or two in all, to see that everything runs "
        "(default: off, the published sizes, a quarter of an hour on two cores)")
    add("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps",
        help="where to compute (default: auto, the CPU and then CUDA where there is one)")
    # fmt: on


def with_command(argv: Sequence[str]) -> list[str]:
    """The words of the command line, `all` before them where no benchmark is named."""
    named = argv and (argv[0] in (*OF_STEPS, *COMMANDS, "-h", "--help"))
    return [*argv] if named else ["all", *argv]


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark that was asked for, print its table, and return what it found.

    That is the content of the JSON for `all` and `leads`, rows by device for `profile`, and the
    medians by name for the others.
    """
    if args.command in OF_STEPS:
        return OF_STEPS[args.command](args)
    device = cli.resolve_device(args.device, None)
    print(describe_machine(device), flush=True)
    figures = COMMANDS[args.command](args, device)
    print(f"\n{format_table([figures.unit, 'median', 'best'], figures.rows)}\n")
    print("\n".join(figures.remarks))
    return {name: middle for name, middle, _ in figures.rows}


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything in pairs, print one table, write it as JSON."""
    found = _begin(args, flags={name: getattr(args, name) for name in ("short", "compile", "amp")})
    for device in map(str, _devices(args.device)):
        print(f"{device}: evaluation, looking for our best batch", flush=True)
        batch = benchmark_pairs.best_evaluation_batch(device, short=args.short, amp=args.amp)
        plan = benchmark_pairs.plan(
            short=args.short, compile_too=args.compile, evaluation_batch=batch
        )
        _measure(plan, found, device=device, amp=args.amp, out=args.out)
    rows = benchmark_pairs.table_rows(found["rows"])
    print(f"\n{format_table(benchmark_pairs.COLUMNS, rows)}\n")
    notes = [
        "times as fast: images/s over those of the side compared with, in the same round; "
        f"medians of {found['rounds']}, least to greatest",
        *benchmark_pairs.describe_base(found["rows"]),
        *benchmark_pairs.remarks(found["rows"]),
        f"written: {args.out}",
    ]
    print("\n".join(notes))
    return found


def measure_leads(args: argparse.Namespace) -> dict[str, Any]:
    """Undo each lead to speed that was kept, try those that were not, print what they give."""
    plan = benchmark_leads.plan(benchmark_pairs.works(short=args.short), args.only)
    if not plan:
        leads = ", ".join(benchmark_leads.LEADS)
        raise UserError(f"--only {args.only}: in the name of no lead; expected one of {leads}")
    found = _begin(args, flags={"short": args.short, "only": args.only})
    for device in map(str, _devices(args.device)):
        _measure(plan, found, device=device, amp="off", out=args.out)
    rows = benchmark_leads.gains(found["rows"])
    print(f"\n{format_table(benchmark_leads.COLUMNS, rows)}\n")
    print(
        f"with the lead over without it, in the same round; medians of {found['rounds']}, least to "
        f"greatest\nwritten: {args.out}"
    )
    return found


def measure_profile(args: argparse.Namespace) -> dict[str, Any]:
    """Say where the time of our search step, training step and evaluation goes."""
    found = {}
    for device in _devices(args.device):
        print(describe_machine(device), flush=True)
        found[str(device)] = benchmark_profile.rows(short=args.short, device=device)
        print(f"\n{format_table(benchmark_profile.COLUMNS, found[str(device)])}\n")
        print(
            f"a product of large matrices: {benchmark_profile.matrix_product(device):.0f} GFLOP/s"
        )
    return found


def _begin(args: argparse.Namespace, *, flags: dict[str, Any]) -> dict[str, Any]:
    """What the JSON begins with; the folder for it is made."""
    cli.make_folder("--out", str(Path(args.out).parent))
    found: dict[str, Any] = {
        "commit": cli.describe_commit() or "unknown",
        "processor": benchmark_pairs.describe_processor(),
        "machine": [describe_machine(device) for device in _devices(args.device)],
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "flags": flags,
        "rounds": args.rounds or (1 if args.short else 5),
        "rows": [],
    }
    print("\n".join([f"commit {found['commit']}", found["processor"], *found["machine"]]))
    return found


def _measure(
    plan: Sequence[benchmark_pairs.Measurement],
    found: dict[str, Any],
    *,
    device: str,
    amp: str,
    out: str,
) -> None:
    for measurement in plan:
        found["rows"] += benchmark_pairs.measure(
            measurement,
            device=device,
            amp=amp,
            rounds=found["rounds"],
            report=lambda line: print(line, flush=True),
        )
        # At once: what was measured outlives a side that fails later.
        write_text(out, json.dumps(found, indent=1) + "\n")


def _devices(device: str) -> list[torch.device]:
    names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [cli.resolve_device(name, None) for name in (names if device == "auto" else [device])]


OF_STEPS = {"all": measure_all, "leads": measure_leads, "profile": measure_profile}
COMMANDS = {
    "data": measure_data,
    "train": measure_train,
    "relabel": measure_relabel,
    "merged": measure_merged,
    "start": measure_start,
}


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser(), with_command(sys.argv[1:])))
