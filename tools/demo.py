"""The whole path on the synthetic set, small enough for a laptop: search, retrain, score.

python -m tools.demo

Runs the scripts by their command lines, as a user would; writes `demo/search` and `demo/train`,
replacing those of an earlier demo.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools import cli
from tools.report import format_table
from utils import UserError

SEARCH = (
    "search.py --data synthetic --init_channels 4 --layers 3 --batch_size 32 --batch_increase 8 "
    "--warmup_dec_epoch 1 --decision_freq 1 --limit_batches 4 --model_path {out} --save search"
)
TRAIN = (
    "train_FER2013.py --data synthetic --arch {out}/search --init_channels 8 --layers 3 "
    "--epochs 6 --batch_size 32 --learning_rate 0.1 --drop_path_prob 0 "
    "--model_path {out} --save train"
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description="Search, retrain and score on the synthetic set, in minutes on two cores.",
    )
    parser.add_argument(
        "--out",
        default="demo",
        metavar="FOLDER",
        help="where the two run folders go (default: demo, which git ignores)",
    )
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run both scripts, then print their figures and the places of the pictures."""
    out = Path(args.out)
    summaries = {}
    for label, command in (("search", SEARCH), ("train", TRAIN)):
        shutil.rmtree(out / label, ignore_errors=True)
        started = time.monotonic()
        words = shlex.split(command.format(out=shlex.quote(str(out))))
        print(f"\n$ python {shlex.join(words)}", flush=True)
        status = subprocess.run([sys.executable, *words], check=False).returncode
        if status != 0:
            raise UserError(f"{words[0]}: ended with status {status}, expected 0")
        summaries[label] = json.loads((out / label / "summary.json").read_text())
        summaries[label]["wall"] = time.monotonic() - started
    figures = summaries["train"]["figures"]
    rows = [
        [name, each["images"], each["accuracy"], each["interval95"]]
        for name, each in figures.items()
    ]
    columns = ["split of the synthetic set", "images", "top-1 %", "95 % interval +-"]
    print(f"\n{format_table(columns, rows)}")
    walls = ", ".join(f"{label} {each['wall']:.0f} s" for label, each in summaries.items())
    print(f"\nchance is about {100 / 7:.0f} %; {walls}; the genotype that was found:")
    print(summaries["search"]["genotype"])
    print("\npictures:")
    for picture in sorted(out.glob("*/*.png")):
        print(f"  {picture}")
    return summaries


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
