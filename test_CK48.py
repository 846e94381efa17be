"""Test a network trained on FER2013 on CK+, fine-tuned fold by fold or as it is.

    python test_CK48.py --batch_size 64 --learning_rate 0.01 --checkpoint checkpoint

`--mode finetune` fine-tunes the checkpoint on each fold; the main figure is the mean over folds of
the accuracy after the last epoch. `--mode evaluate` trains nothing: the six classes that both sets
have, contempt left out and neutral never answered. Writes a run folder below --model_path:
`log.txt`, report and confusion matrix over all folds, `summary.json`, and `checkpoint.pt`, the
finished folds, which --resume does not run again.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from common import arguments, cli
from common.crossval import crossval_parser, main_on
from data.ck48 import CK_CLASSES, load_ck48
from data.faces import Faces
from data.folds import Fold, published_ck48_folds, subject_folds

SHARED = len(CK_CLASSES) - 1  # classes that CK+ and FER2013 have alike and in the same order


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            crossval_parser(
                name="CK48",
                data="CK+48 as a folder, a folder that holds it",
                batch_size=64,
                mode="finetune",
                why="as published",
            )
        ],
    )
    # fmt: off
    add = parser.add_argument_group("the folds").add_argument
    add("--folds", type=arguments.positive_int, default=10, metavar="K",
        help="folds: of whole subjects, or the published ranges with --protocol paper "
        "(default: 10, published beside 8)")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    def choose_folds(faces: Faces) -> list[Fold]:
        if args.protocol == "paper":
            return published_ck48_folds(faces.labels, args.folds)
        return subject_folds(faces.subjects, faces.labels, args.folds, args.seed)

    return main_on(
        args,
        name="CK48",
        load=lambda report: load_ck48(args.data, report=report),
        choose_folds=choose_folds,
        classes=CK_CLASSES,
        shared=CK_CLASSES[:SHARED],
        follows_protocol=True,
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
