"""Test a network trained on FER2013 on CK+, fine-tuned fold by fold or as it is.

    python test_CK48.py --batch_size 64 --learning_rate 0.01 --checkpoint checkpoint

`--mode finetune` fine-tunes the checkpoint on each fold; the main figure is the mean over folds of
the accuracy after the last epoch. `--mode evaluate` trains nothing: it scores the six classes that
both sets have, without contempt and neutral. Writes a run folder below --model_path: `log.txt`,
report and confusion matrix over all folds, `summary.json`, and `checkpoint.pt`, the finished folds,
which --resume does not run again; with --save_folds also the weights of each fold.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from runtime.startup import prepare

prepare()  # before torch is imported

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
from data.ck48 import CK_CLASSES, load_ck48
from data.folds import published_ck48_folds, subject_folds
from data.types import CLASSES
from runtime.logs import open_log

SHARED = len(CK_CLASSES) - 1  # classes that CK+ and FER2013 share, in the same order


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__)
    # fmt: off
    parser.add_argument("--folds", type=arguments.positive_int, default=10, metavar="K",
        help="folds: of whole subjects, or the published ranges with --protocol paper")
    # fmt: on
    add_crossval_arguments(parser, mode="finetune")
    arguments.add_checkpoint_arguments(parser)
    arguments.add_data_arguments(parser, batch_size=64, seed=0)
    arguments.add_folder_arguments(parser)
    arguments.add_run_arguments(parser, "test_CK48.py")
    arguments.add_sgd_arguments(parser, learning_rate=0.01794073, drop_path_prob=None)
    arguments.add_training_arguments(parser, epochs=60)
    arguments.add_tta_argument(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    open_log()
    device = resolve_device(args)
    trained = load_start(args)
    require_classes(trained.path, trained.classes, CLASSES)
    faces = load_ck48(args.data)
    finetune = args.mode == "finetune"
    if not finetune:
        folds = []
    elif args.protocol == "paper":
        folds = published_ck48_folds(faces.labels, args.folds)
    else:
        folds = subject_folds(faces.subjects, faces.labels, args.folds, args.seed)
    chosen = choose_fold(folds, args)

    inputs = {"data": faces.digest(), "checkpoint": digest(trained.path)} if finetune else {}
    run = start_run(args, device, "ck48", "folds", inputs)
    facts = summary_facts(trained, args, len(folds), args.protocol if finetune else None)
    with run.interruptible(args.time_limit, resumable=finetune):
        if finetune:
            return cross_validate(trained, faces, chosen, "CK48", CK_CLASSES, facts, args, run)
        return evaluate_faces(trained, faces, "CK48", CK_CLASSES[:SHARED], facts, args, run)


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
