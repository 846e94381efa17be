"""Test a network trained on FER2013 on JAFFE, as it is or fine-tuned on the other subjects.

    python test_JAFFE.py --checkpoint checkpoint

`--mode evaluate` scores the checkpoint on all 213 images; `--mode finetune` leaves one subject out
at a time, and its main figure is the mean over subjects of the accuracy after the last epoch.
Writes a run folder below --model_path: `log.txt`, report and confusion matrix, `summary.json`, and
with fine-tuning `checkpoint.pt`, the finished folds, which --resume does not run again.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from common import arguments, cli
from common.crossval import crossval_parser, main_on
from data.fer2013 import CLASSES
from data.folds import leave_one_subject_out
from data.jaffe import BOX, load_jaffe


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            crossval_parser(
                name="JAFFE",
                data="JAFFE as a folder, a folder that holds it",
                batch_size=16,
                mode="evaluate",
                why="as published",
            )
        ],
    )
    # fmt: off
    add = parser.add_argument_group("the frames").add_argument
    add("--crop", type=arguments.box, default=BOX, metavar="LEFT,TOP,RIGHT,BOTTOM|none",
        help="part of the 256x256 frame that is taken (default: 56,76,204,224, which frames faces "
        "as FER2013 does; images in class folders are taken whole)")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    return main_on(
        args,
        name="JAFFE",
        load=lambda report: load_jaffe(args.data, crop=args.crop, report=report),
        choose_folds=lambda faces: leave_one_subject_out(faces.subjects),
        classes=CLASSES,
        shared=CLASSES,
        follows_protocol=False,  # by subject under both
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
