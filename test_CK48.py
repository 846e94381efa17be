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
from common.crossval import add_crossval_arguments, cross_validate, evaluate_faces
from common.start import start_run
from data.ck48 import CK_CLASSES, load_ck48
from data.folds import published_ck48_folds, subject_folds

SHARED = len(CK_CLASSES) - 1  # classes that CK+ and FER2013 share, in the same order


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__)
    # fmt: off
    parser.add_argument("--folds", type=arguments.positive_int, default=10, metavar="K",
        help="folds: of whole subjects, or the published ranges with --protocol paper")
    # fmt: on
    add_crossval_arguments(parser, "test_CK48.py", mode="finetune", batch_size=64)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    run = start_run(args, "ck48")
    faces = load_ck48(args.data)
    if args.mode == "evaluate":
        return evaluate_faces(args, run, faces, "CK48", CK_CLASSES[:SHARED])
    if args.protocol == "paper":
        folds = published_ck48_folds(faces.labels, args.folds)
    else:
        folds = subject_folds(faces.subjects, faces.labels, args.folds, args.seed)
    return cross_validate(args, run, faces, folds, "CK48", CK_CLASSES)


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
