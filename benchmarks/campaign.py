"""The fault campaign: breaks runs and gives hostile input to readers.

    python -m benchmarks.campaign
    python -m benchmarks.campaign --kills 10 --examples 500 --only train

Kills searches and trainings at random moments; resumed, they must end as undisturbed runs do, bit
for bit. Causes every other fault in both scripts. Gives generated files to every reader of user
input: it must return a value or raise a UserError of one line within hostile.SLOW seconds, and
must not write, start or fetch anything. Prints how many were tried and held by kind, and writes the
counts with reasons as JSON. The exit status is 2 when anything did not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.faults import DISTURBED, FAULTS, Bench, Fault, killed
from benchmarks.hostile import checkpoint_readers, file_readers, try_inputs
from common import arguments, cli
from common.report import format_table
from runtime.errors import UserError
from runtime.files import write_text

KEPT = 20  # reasons of each kind in the JSON
Case = Callable[[], list[str | None]]  # tries inputs or a run: None for each that held, or why not


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m benchmarks.campaign")
    # fmt: off
    add = parser.add_argument
    add("--kills", type=arguments.count, default=100, metavar="N",
        help="runs to kill, alternately searches and trainings")
    add("--examples", type=arguments.count, default=12_000, metavar="N",
        help="generated inputs over all readers")
    add("--only", default="", metavar="TEXT", help="only kinds whose names contain TEXT")
    add("--seed", type=arguments.count, default=0, metavar="N",
        help="seed of the moments of kills and of the inputs")
    add("--out", default="faults.json", metavar="FILE", help="where the JSON is written")
    # fmt: on
    return parser


def cases(args: argparse.Namespace, bench: Bench) -> Iterator[tuple[str, Case]]:
    """Every case of the campaign, with its kind."""
    readers = {**checkpoint_readers(bench), **file_readers()} if args.examples else {}
    for name, reader in readers.items():
        examples = args.examples // len(readers)
        yield f"input: {name}", partial(try_inputs, reader, examples, args.seed)
    for script, (name, fault) in product(DISTURBED, FAULTS.items()):
        yield f"{script}: {name}", partial(_try_fault, fault, bench, script)
    rng = random.Random(args.seed)
    for number in range(args.kills):
        script = DISTURBED[number % len(DISTURBED)]
        kill = partial(killed, rng.random(), rng.choice([None, rng.random()]))
        yield f"{script}: killed and resumed", partial(_try_fault, kill, bench, script)


def _try_fault(fault: Fault, bench: Bench, script: str) -> list[str | None]:
    try:
        fault(bench, script)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return [None]


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the campaign; returns the counts. Raises UserError when anything did not hold."""
    counts: dict[str, dict[str, Any]] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for kind, case in cases(args, Bench(Path(folder))):
            if args.only not in kind:
                continue
            results = case()
            reasons = [reason for reason in results if reason is not None]
            row = counts.setdefault(kind, {"tried": 0, "held": 0, "reasons": []})
            row["tried"] += len(results)
            row["held"] += len(results) - len(reasons)
            row["reasons"] = [*row["reasons"], *reasons][:KEPT]
            seconds = time.monotonic() - started
            line = f"{seconds:6.0f} s  {kind}: {row['held']} of {row['tried']} held"
            print("\n    ".join([line, *reasons[:3]]), flush=True)
    table = [[kind, row["tried"], row["held"]] for kind, row in counts.items()]
    tried, held = (sum(row[column] for row in table) for column in (1, 2))
    print(format_table(["kind", "tried", "held"], [*table, ["all", tried, held]]))
    report = {"seed": args.seed, "seconds": time.monotonic() - started, "counts": counts}
    write_text(args.out, json.dumps(report, indent=2) + "\n")
    if tried > held:
        raise UserError(f"{tried - held} of {tried} did not hold; see {args.out}")
    return report


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
