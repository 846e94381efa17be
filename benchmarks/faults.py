"""The campaign of faults: kills, hostile input, full disks, counted.

    python -m benchmarks.faults

Kills searches and trainings at random moments and compares what the resumed ones end with, bit for
bit, with runs that nothing disturbed; gives every parser generated input; does every other fault to
both scripts. Prints a table of counts, tried, held and not held, and writes it with what did not
hold as JSON. Exit status 2 when anything did not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.fault_cases import FAULTS, WORDS, Bench, kill_and_resume
from benchmarks.hostile import try_inputs
from benchmarks.hostile_parsers import PARSERS
from common import arguments, cli
from common.report import format_table
from utils import UserError, write_text

KEPT = 20  # of each kind, what is told of those that did not hold


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=(__doc__ or "").split("\n")[0]
    )
    # fmt: off
    add = parser.add_argument
    add("--kills", type=arguments.count, default=100, metavar="N",
        help="runs to kill, by turns searches and trainings (default: 100, some minutes)")
    add("--inputs", type=arguments.count, default=12_000, metavar="N",
        help="generated inputs over all parsers (default: 12000, so that 10,000 are left when "
        "some of them come twice)")
    add("--repeats", type=arguments.count, default=1, metavar="N",
        help="times that every other fault befalls each script (default: 1, as all but the second "
        "Ctrl-C befall at the same moment)")
    add("--scripts", default=",".join(WORDS), metavar="A,B",
        help="scripts to run (default: train,search)")
    add("--parsers", default=",".join(PARSERS), metavar="A,B",
        help="parsers to give input to (default: all)")
    add("--seed", type=arguments.count, default=0, metavar="N",
        help="seed of the moments and of the inputs (default: 0; another tries others)")
    add("--out", default="faults.json", metavar="FILE",
        help="where the counts go (default: faults.json, which git ignores)")
    # fmt: on
    return parser


class Counts:
    """Rows of the table: how many were tried of each kind, and what did not hold."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def add(self, kind: str, wrong: str | None, tried: int = 1) -> None:
        """Count `tried` of a kind, of which one did not hold where `wrong` says why."""
        row = self.rows.setdefault(kind, {"tried": 0, "held": 0, "not held": 0, "reasons": []})
        row["tried"] += tried
        row["held"] += tried - (wrong is not None)
        row["not held"] += wrong is not None
        if wrong is not None and len(row["reasons"]) < KEPT:
            row["reasons"].append(wrong)
            print(f"{kind}: {wrong}", flush=True)

    def table(self) -> str:
        """The counts, with their sum."""
        columns = ("tried", "held", "not held")
        rows = [[kind, *(row[name] for name in columns)] for kind, row in self.rows.items()]
        rows.append(["all", *(sum(row[name] for row in self.rows.values()) for name in columns)])
        return format_table(["", *columns], rows)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the campaign; returns the counts. Raises UserError when anything did not hold."""
    scripts = _chosen("--scripts", args.scripts, WORDS)
    chosen = _chosen("--parsers", args.parsers, PARSERS)
    counts, started = Counts(), time.monotonic()
    for name in chosen:
        tally = try_inputs(PARSERS[name], args.inputs // len(chosen), args.seed)
        counts.add(f"input: {name}", None, tally.tried - len(tally.failures))
        for reason, value in tally.failures:
            counts.add(f"input: {name}", f"{reason}; {str(value)[:200]}")
        _progress(counts, started)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for script in scripts:
            for name, case in FAULTS.items():
                for _ in range(args.repeats):
                    counts.add(f"{script}: {name}", _held(case, bench, script))
                _progress(counts, started)
        generator = random.Random(args.seed)
        for number in range(args.kills):
            script = scripts[number % len(scripts)]
            seconds = bench.seconds(script)
            moment = generator.uniform(0, seconds)
            again = generator.choice([None, generator.uniform(0, seconds)])
            wrong = _held(kill_and_resume, bench, script, moment, again)
            counts.add(f"{script}: killed and resumed", wrong)
            if number % 10 == 9:
                _progress(counts, started)
    print(counts.table())
    found = {"seed": args.seed, "seconds": time.monotonic() - started, "counts": counts.rows}
    write_text(args.out, json.dumps(found, indent=2) + "\n")
    failed = sum(row["not held"] for row in counts.rows.values())
    if failed:
        tried = sum(row["tried"] for row in counts.rows.values())
        raise UserError(f"{failed} of {tried} did not hold; {args.out} says which")
    return found


def _held(case: Any, *arguments: Any) -> str | None:
    try:
        return case(*arguments)
    except Exception as error:  # a case that breaks has not held
        return f"{type(error).__name__}: {error}"


def _chosen(flag: str, text: str, known: dict[str, Any]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"{flag} {name}: expected some of {', '.join(known)}")
    return names


def _progress(counts: Counts, started: float) -> None:
    last = list(counts.rows)[-1]
    row = counts.rows[last]
    seconds = time.monotonic() - started
    print(f"{seconds:6.0f} s  {last}: {row['held']} of {row['tried']} held", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
