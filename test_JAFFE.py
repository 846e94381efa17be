"""Test a network trained on FER2013 on JAFFE, as it is or fine-tuned on the other subjects.

    python test_JAFFE.py --checkpoint checkpoint

`--mode evaluate` scores the checkpoint on all 213 images; `--mode finetune` leaves one subject out
at a time, and its main figure is the mean over subjects of the accuracy after the last epoch.
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
from data.folds import leave_one_subject_out
from data.jaffe import BOX, load_jaffe
from data.types import CLASSES


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__)
    # fmt: off
    parser.add_argument("--crop", type=box, default=BOX,
        metavar="LEFT,TOP,RIGHT,BOTTOM|none",
        help="box of the 256x256 frame that is used, by default with the framing of FER2013; "
        "images that are cropped already are used whole")
    # fmt: on
    add_crossval_arguments(parser, mode="evaluate")
    arguments.add_checkpoint_arguments(parser)
    arguments.add_data_arguments(parser, batch_size=16, seed=0)
    arguments.add_folder_arguments(parser)
    arguments.add_run_arguments(parser, "test_JAFFE.py")
    arguments.add_sgd_arguments(parser, learning_rate=0.01794073, drop_path_prob=None)
    arguments.add_training_arguments(parser, epochs=60)
    arguments.add_tta_argument(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    run = start_run(args, "jaffe")
    faces = load_jaffe(args.data, crop=args.crop)
    if args.mode == "evaluate":
        return evaluate_faces(args, run, faces, "JAFFE", CLASSES)
    folds = leave_one_subject_out(faces.subjects)  # under both protocols
    return cross_validate(args, run, faces, folds, "JAFFE", CLASSES, protocol=None)


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
