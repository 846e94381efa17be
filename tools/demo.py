"""Run all six scripts in their order on small synthetic sets, in minutes on two cores.

    python -m tools.demo

Writes a run folder for each script into a new folder below --out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from typing import Any

from common import cli
from common.arguments import new_parser
from common.report import count_images, format_table
from runtime.errors import UserError
from runtime.folders import create_run_folder

COMMANDS = {
    "search": "search.py --init_channels 4 --layers 3 --batch_size 32 --batch_increase 8 "
    "--warmup_dec_epoch 1 --decision_freq 1 --limit_batches 3",
    "train": "train_FER2013.py --arch {out}/search --init_channels 8 --layers 3 --epochs 5 "
    "--batch_size 32 --learning_rate 0.1 --drop_path_prob 0",
    "relabel": "relabel_training.py --checkpoint {out}/train --epochs 2 --batch_size 32 "
    "--learning_rate 0.01 --relabel_threshold 0.2 --fes True --fes_threshold 0.03",
    "ensemble": "ensemble.py --model_names {out}/train,{out}/relabel",
    "ck48": "test_CK48.py --checkpoint {out}/relabel --folds 3 --epochs 4",
    "jaffe": "test_JAFFE.py --checkpoint {out}/relabel",
}


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "python -m tools.demo")
    parser.add_argument(
        "--out",
        default="demo",
        metavar="FOLDER",
        help="where the folder of the run folders is made; git ignores demo/",
    )
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the scripts, then print their figures and the paths of the pictures."""
    out, summaries = create_run_folder(args.out, None, "demo"), {}
    for label, command in COMMANDS.items():
        started = time.monotonic()
        words = shlex.split(command.format(out=shlex.quote(str(out))))
        words += ["--data", "synthetic", "--model_path", str(out), "--save", label]
        print(f"\n$ python {shlex.join(words)}", flush=True)
        status = cli.run_command(words)
        if status != 0:
            raise UserError(f"{words[0]}: ended with status {status}, expected 0")
        summaries[label] = json.loads((out / label / "summary.json").read_bytes())
        summaries[label]["wall"] = time.monotonic() - started
    rows = [
        [summary["script"], split, count_images(row), row["accuracy"], f"{summary['wall']:.0f}"]
        for summary in summaries.values()
        for split, row in summary["figures"].items()
    ]
    columns = ["script", "synthetic split or set", "images", "top-1 %", "seconds of the script"]
    print(f"\n{format_table(columns, rows)}")
    repairs = summaries["relabel"]["details"]["last_epoch"]
    print(
        f"\nchance is about {100 / 7:.0f} %; the last epoch of relabelling changed "
        f"{repairs['changed']} of {repairs['labels']} labels; the genotype of the search:"
    )
    print(summaries["search"]["genotype"])
    print("\npictures:", *sorted(map(str, out.glob("*/*.png"))), sep="\n  ")
    return summaries


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
