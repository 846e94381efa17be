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
from common.crossval import (
    add_crossval_arguments,
    choose_fold,
    cross_validate,
    evaluate_faces,
    summary_facts,
)
from common.manifest import digest
from common.start import resolve_device, start_run
from common.weights import load_start, require_classes
from data.folds import leave_one_subject_out
from data.jaffe import BOX, load_jaffe
from data.types import CLASSES
from runtime.logs import open_log


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
    open_log()
    device = resolve_device(args)
    trained = load_start(args)
    require_classes(trained.path, trained.classes, CLASSES)
    faces = load_jaffe(args.data, crop=args.crop)
    finetune = args.mode == "finetune"
    folds = leave_one_subject_out(faces.subjects) if finetune else []
    chosen = choose_fold(folds, args)

    inputs = {"data": faces.digest(), "checkpoint": digest(trained.path)} if finetune else {}
    run = start_run(args, device, "jaffe", "folds", inputs)
    facts = summary_facts(trained, args, len(folds), protocol=None)  # by subject under both
    with run.interruptible(args.time_limit, resumable=finetune):
        if finetune:
            return cross_validate(trained, faces, chosen, "JAFFE", CLASSES, facts, args, run)
        return evaluate_faces(trained, faces, "JAFFE", CLASSES, facts, args, run)


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
