"""Fine-tune a trained network on FER2013 while changing doubtful labels.

    python relabel_training.py --batch_size 64 --learning_rate 0.001 --relabel_threshold 0.2 \
        --fes True --fes_threshold 0.03 --checkpoint checkpoint

From the second epoch on, if the top class beats the given label by less than --relabel_threshold in
probability, it replaces the label for that step; with FES only where the two expressions are
similar. `--relabel_threshold 0` changes no label and is the control run. On data of other classes,
`--reset_classifier --fes False` fine-tunes with a new last layer, and changes no label unless
--relabel_threshold is given. Writes a run folder below --model_path with what train_FER2013.py
writes, and `changes.csv`: for each epoch in which labels may change, how many of each class became
which.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from runtime.startup import prepare

prepare()  # before torch is imported

import torch

from common import arguments
from common.cli import run_script
from common.start import check_inputs, start_run
from common.training import resume_training, run_training
from common.weights import Trained, fit_classes, load_start, load_teacher
from data.sets import load_set
from data.types import CLASSES
from engine import TrainState
from relabelling import Relabelling, choose_fes
from runtime.errors import UserError
from runtime.logs import log
from runtime.run import Run


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("relabelling").add_argument
    add("--relabel_threshold", type=arguments.non_negative, metavar="T",
        help="a label is doubtful if the top class beats it by less than this in probability "
        "(default: 0.2, and with a new last layer 0, which changes none)")
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
    arguments.add_sgd_arguments(parser, learning_rate=0.02272721, published=0.001)
    arguments.add_training_arguments(parser, epochs=100)
    arguments.add_teacher_arguments(parser)
    arguments.add_copies_argument(parser)
    arguments.add_tta_argument(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    run = start_run(args, "relabel")
    if args.fes_matrix is not None and not args.fes:
        raise UserError(f"--fes_matrix {args.fes_matrix}: not with --fes False, which uses none")
    start = None if run.resumed else load_start(args)
    data = load_set(args.data, without_copies=args.drop_copies)
    data = data.to(run.device)
    if args.fes and data.classes != CLASSES:
        raise UserError(
            f"--fes True: needs FER2013's classes, {args.data} has {', '.join(data.classes)}; "
            "expected --fes False"
        )
    if args.relabel_threshold is None:  # of a new run
        args.relabel_threshold = 0.0 if start and start.classes != data.classes else 0.2
    teacher = load_teacher(args, data.classes, run.device)
    check_inputs(run, args, data, start.path if start else None)
    if start is None:
        train = resume_training(run, data.classes, args)
    else:
        train = new_training(start, data.classes, args, run)
    origin, fes = (train.progress.extra[name] for name in ("checkpoint", "fes"))
    start_epoch = train.drop_path.start_epoch
    log.info("from %s, epoch %d", origin, start_epoch)
    return run_training(
        train,
        data,
        teacher,
        args,
        run,
        checkpoints=[origin, *args.teacher],
        relabelling=Relabelling(
            data.classes,
            run.device,
            threshold=args.relabel_threshold,
            fes=torch.tensor(fes) if args.fes else None,
            fes_threshold=args.fes_threshold,
        ),
        details={
            "start_epoch": start_epoch,
            "relabel_threshold": args.relabel_threshold,
            "fes": args.fes,
            "fes_threshold": args.fes_threshold,
            "fes_matrix": (args.fes_matrix or f"{args.protocol} protocol") if args.fes else None,
        },
    )


def new_training(
    start: Trained, classes: tuple[str, ...], args: argparse.Namespace, run: Run
) -> TrainState:
    """The training that goes on from `start`; with --reset_classifier for other classes."""
    model = fit_classes(start, classes, args.reset_classifier).to(run.device)
    train = TrainState(model, args, start.drop_path(args), classes)
    # Kept with the run, as the files may change before it is resumed.
    fes = choose_fes(args.fes_matrix, args.protocol).tolist()
    train.progress.extra |= {"checkpoint": str(start.path), "fes": fes}
    return train


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
