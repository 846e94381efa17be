"""Test a network trained on FER2013 on JAFFE, as it is or fine-tuned on the other subjects.

    python test_JAFFE.py --checkpoint checkpoint

`--mode evaluate` scores the checkpoint on all 213 images; `--mode finetune` leaves one subject out
at a time, and its main figure is the mean over subjects of the accuracy after the last epoch. With
`--protocol paper` the folds are random images, so that each person is in both parts.
Writes a run folder below --model_path: `log.txt`, report and confusion matrix, `summary.json`, and
with fine-tuning `checkpoint.pt`, the finished folds, which --resume does not run again, and with
--save_folds the weights of each fold.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from runtime.startup import prepare

prepare()  # before torch is imported

from auto_fernet.command import box
from common import arguments
from common.cli import run_script
from common.crossval import add_crossval_arguments, cross_validate, evaluate_faces
from common.start import start_run
from data.folds import leave_one_subject_out, random_folds
from data.jaffe import BOX, load_jaffe
from data.types import CLASSES


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__)
    # fmt: off
    parser.add_argument("--crop", type=box, default=BOX,
        metavar="LEFT,TOP,RIGHT,BOTTOM|none",
        help="box of the 256x256 frame that is used, by default with the framing of FER2013; "
        "images that are cropped already are used whole")
    parser.add_argument("--folds", type=arguments.positive_int, default=10, metavar="K",
        help="random folds of images with --protocol paper, as the published split is not given")
    # fmt: on
    add_crossval_arguments(parser, "test_JAFFE.py", mode="evaluate", batch_size=16)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    run = start_run(args, "jaffe")
    faces = load_jaffe(args.data, crop=args.crop)
    if args.mode == "evaluate":
        return evaluate_faces(args, run, faces, "JAFFE", CLASSES)
    if args.protocol == "paper":
        folds = random_folds(faces.labels, args.folds, args.seed)
    else:
        folds = leave_one_subject_out(faces.subjects)
    return cross_validate(args, run, faces, folds, "JAFFE", CLASSES)


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
