"""Fine-tune a trained network on FER2013 while changing doubtful labels.

    python relabel_training.py --batch_size 64 --learning_rate 0.001 --relabel_threshold 0.2 \
        --fes True --fes_threshold 0.03 --checkpoint checkpoint

From the second epoch on, if the top class beats the given label by less than --relabel_threshold in
probability, it replaces the label for that step; with FES only where the two expressions are
similar. `--relabel_threshold 0` changes no label and is the control run. On data of other classes,
`--reset_classifier --fes False` fine-tunes with a new last layer. Writes a run folder below
--model_path with what train_FER2013.py writes, and `changes.csv`: for each epoch but the first, how
many labels of each class became which.
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from typing import Any

import runtime.startup  # noqa: F401 (before torch, which takes seconds)

import torch

from common import arguments
from common.cli import run_script
from common.start import resolve_device, start_run
from common.training import evaluation_splits, report_training, save_training
from common.weights import (
    fit_classes,
    load_start,
    load_teacher,
    require_classes,
    resume_network,
    training_inputs,
)
from data.fes import PUBLISHED_FES, TRAINING_FES, load_fes
from data.relabel import Relabelling
from data.sets import load_set
from data.types import CLASSES
from engine import TrainState, fit
from runtime.errors import UserError
from runtime.logs import LOGGER_NAME, open_log

_log = logging.getLogger(LOGGER_NAME)


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("relabelling").add_argument
    add("--relabel_threshold", type=arguments.non_negative, default=0.2, metavar="T",
        help="a label is doubtful if the top class beats it by less than this in probability")
    add("--fes", type=arguments.true_or_false, default=True, metavar="True|False",
        help="change labels to similar expressions only")
    add("--fes_threshold", type=arguments.non_negative, default=0.03, metavar="T",
        help="expressions are similar above this")
    add("--fes_matrix", metavar="FILE",
        help="a matrix that tools.fes wrote (default: that of the Training rows of FER+, or of all "
        "its rows with --protocol paper)")
    # fmt: on
    arguments.add_checkpoint_arguments(parser)
    arguments.add_reset_argument(parser)
    arguments.add_data_arguments(parser, batch_size=64, seed=0)
    arguments.add_folder_arguments(parser)
    arguments.add_run_arguments(parser, "relabel_training.py")
    arguments.add_sgd_arguments(parser, learning_rate=0.02272721, drop_path_prob=None)
    arguments.add_training_arguments(parser, epochs=100)
    arguments.add_teacher_arguments(parser)
    arguments.add_copies_argument(parser)
    arguments.add_tta_argument(parser)
    return parser


def choose_fes(file: str | None, protocol: str) -> list[list[float]]:
    """The similarity of every two classes: that of `file`, or what `protocol` uses."""
    if file is not None:
        return load_fes(file).tolist()
    return (TRAINING_FES if protocol == "clean" else PUBLISHED_FES).tolist()


def main(args: argparse.Namespace) -> dict[str, Any]:
    open_log()
    device = resolve_device(args)
    if args.fes_matrix is not None and not args.fes:
        raise UserError(f"--fes_matrix {args.fes_matrix}: not with --fes False, which uses none")
    start = load_start(args) if args.resume is None else None
    fes = choose_fes(args.fes_matrix, args.protocol) if args.resume is None else None
    teacher, taught_classes = load_teacher(args, device)
    data = load_set(args.data, args.seed, without_copies=args.drop_copies)
    data = data.to(device)
    if teacher is not None:
        require_classes(",".join(args.teacher), taught_classes, data.classes)
    if args.fes and data.classes != CLASSES:
        raise UserError(
            f"--fes True: needs FER2013's classes, {args.data} has {', '.join(data.classes)}; "
            "expected --fes False"
        )

    inputs = training_inputs(data, args, start)
    run = start_run(args, device, "relabel", "training", inputs)
    if start is not None:
        model = fit_classes(start, data.classes, args.reset_classifier)
        drop_path = start.drop_path(args)
    else:
        model, drop_path = resume_network(run, data.classes, args)
    train = TrainState(model.to(device), args, drop_path, data.classes)
    settings = train.progress.extra
    if start is not None:
        # Kept with the run, as the files may change before it is resumed.
        settings |= {"checkpoint": str(start.path), "fes": fes}
    elif run.resumed is not None:
        train.load_state_dict(run.resumed, run.folder / "checkpoint.pt")
        settings = train.progress.extra
    _log.info("from %s, epoch %d", settings["checkpoint"], drop_path.start_epoch)
    relabel = Relabelling(
        data.splits["Training"],
        threshold=args.relabel_threshold,
        fes=torch.tensor(settings["fes"], device=device) if args.fes else None,
        fes_threshold=args.fes_threshold,
        batch_size=args.batch_size,
        seed=args.seed,
        classes=data.classes,
    )

    evaluations = evaluation_splits(data.splits, args)
    save = partial(save_training, train, args, run)
    with run.interruptible(args.time_limit):
        fit(
            train,
            data.splits["Training"],
            evaluations,
            args,
            run,
            save=save,
            teacher=teacher,
            relabel=relabel,
        )
        return report_training(
            train,
            evaluations,
            args,
            run,
            checkpoints=[settings["checkpoint"], *args.teacher],
            details={
                "start_epoch": drop_path.start_epoch,
                "relabel_threshold": args.relabel_threshold,
                "fes": args.fes,
                "fes_threshold": args.fes_threshold,
                "fes_matrix": (args.fes_matrix or f"{args.protocol} protocol")
                if args.fes
                else None,
            },
        )


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
