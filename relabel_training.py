"""Fine-tune a trained network on FER2013 while repairing doubtful labels.

    python relabel_training.py --batch_size 64 --learning_rate 0.001 --relabel_threshold 0.2 \
        --fes True --fes_threshold 0.03 --checkpoint checkpoint

From the second epoch on, a label that the network doubts is replaced for that step by the class
that it finds likeliest: with FES only where the two expressions are similar. `--relabel_threshold
0` repairs nothing and so is the control. Writes a run folder below --model_path with what
train_FER2013.py writes, and `changes.csv`: of the labels of each epoch but the first, how many of
each class became which.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import arguments, cli, recipe, teacher
from common.checkpoints import resume_optimisation, resume_training
from common.training import saver, train_and_report
from common.weights import finetuning_parsers, load_trained, require_weights
from data.fer2013 import load_fer2013
from data.fes import PUBLISHED_FES, TRAINING_FES, load_fes
from data.relabel import Changes, relabel, truth_batches
from engine import Relabel, TrainState, autocast, rising
from utils import (
    UserError,
    create_run_folder,
    describe_machine,
    open_log,
    seed_everything,
    write_rows,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            arguments.common_parser(batch_size=64, batch_why="the published value", seed=0),
            arguments.folder_parser(label="relabel"),
            arguments.run_parser(script="relabel_training.py"),
            *finetuning_parsers(
                learning_rate=0.02272721, epochs=100, why="ideally saved before they converged"
            ),
            teacher.teacher_parser(),
            arguments.tta_parser(),
        ],
    )
    # fmt: off
    add = parser.add_argument_group("relabelling").add_argument
    add("--relabel_threshold", type=arguments.non_negative, default=0.2, metavar="T",
        help="a label is doubtful when the likeliest class is less than this more probable "
        "(default: 0.2, the published value)")
    add("--fes", type=arguments.true_or_false, default=True, metavar="True|False",
        help="repair only to similar expressions (default: True, the published method)")
    add("--fes_threshold", type=arguments.non_negative, default=0.03, metavar="T",
        help="expressions are similar above this (default: 0.03, the published value)")
    add("--fes_matrix", metavar="FILE",
        help="a matrix that tools.fes wrote (default: that of the Training rows of FER+, or of all "
        "its rows with --protocol paper, as published)")
    # fmt: on
    return parser


def choose_fes(file: str | None, protocol: str) -> list[list[float]]:
    """The similarity of every two classes: that of `file`, or what `protocol` uses."""
    if file is not None:
        return load_fes(file).tolist()
    return (TRAINING_FES if protocol == "clean" else PUBLISHED_FES).tolist()


def main(args: argparse.Namespace) -> dict[str, Any]:
    log = open_log()
    device = cli.resolve_device(args.device, args.gpu)
    precision = autocast(device, args.amp)
    if args.fes_matrix is not None and not args.fes:
        raise UserError(f"--fes_matrix {args.fes_matrix}: not with --fes False, which uses none")
    teaching = teacher.teaching(args, device)
    seed_everything(args.seed)
    if args.resume is None:
        path = require_weights(args.checkpoint, args.model_path)
        start = load_trained(
            path, layers=args.layers, init_channels=args.init_channels, arch=args.arch
        )
        model, description, state = start.model, start.description, TrainState()
        start_epoch, planned = start.epoch, start.epochs or args.epochs
        drop_path_prob = start.highest_drop_path(args.drop_path_prob)
        # What the run hangs on and what may change before it is resumed.
        state.extra |= {"checkpoint": str(path), "fes": choose_fes(args.fes_matrix, args.protocol)}
    else:
        run = Path(args.resume)
        resumed, model, state = resume_training(run)
        description, drop_path_prob = resumed["model"], resumed["drop_path_prob"]
        start_epoch, planned = resumed["start_epoch"], resumed["epochs"]
    splits = load_fer2013(args.data, report=log.info)
    splits = {name: split.map(lambda t: t.to(device)) for name, split in splits.items()}
    if args.resume is None:
        run = create_run_folder(args.model_path, args.save, "relabel")
    log = open_log(run)
    model = model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), **arguments.sgd_arguments(args))
    average = recipe.averaged(model, args.ema)
    if args.resume is not None:
        resume_optimisation(optimizer, average, resumed, run / "checkpoint.pt")
    log.info("%s", describe_machine(device))
    log.info("run folder %s; from %s, epoch %d", run, state.extra["checkpoint"], start_epoch)
    fes = torch.tensor(state.extra["fes"], device=device) if args.fes else None

    training = splits["Training"]
    changes: Changes | None = None  # of the epoch under way
    save_training = saver(
        run,
        model,
        optimizer,
        description=description,
        protocol=args.protocol,
        epochs=planned,
        drop_path_prob=drop_path_prob,
        args=vars(args),
        average=average,
        start_epoch=start_epoch,
    )

    def relabel_at(epoch: int) -> Relabel | None:
        nonlocal changes
        if epoch == 0:
            return None
        truth = None
        if training.true_labels is not None:
            truth = truth_batches(
                training,
                batch_size=args.batch_size,
                seed=args.seed,
                epoch=epoch,
                first_step=state.step,
            )
        rule = partial(
            relabel, threshold=args.relabel_threshold, fes=fes, fes_threshold=args.fes_threshold
        )
        changes = Changes(rule, device, truth, state.extra.pop("counts", None))
        return changes

    def save(state: TrainState) -> None:
        nonlocal changes
        if changes is not None and state.step > 0:
            state.extra["counts"] = changes.totals()
        elif changes is not None:
            repairs, changes = changes.read(), None
            state.history[-1] |= repairs.record()
            log.info("%s", repairs.describe())
            rows = state.extra.setdefault("changes", [])
            rows += repairs.rows(state.epoch)
            write_rows(rows, run / "changes.csv")
        save_training(state)

    return train_and_report(
        run,
        model,
        optimizer,
        splits,
        state=state,
        precision=precision,
        time_limit=args.time_limit,
        tta=args.tta,
        save=save,
        average=average,
        drop_path_at=lambda epoch: rising(start_epoch + epoch, planned, drop_path_prob),
        relabel_at=relabel_at,
        about={
            "script": args.script,
            "protocol": args.protocol,
            "seed": args.seed,
            "checkpoints": [state.extra["checkpoint"], *args.teacher],
            "start_epoch": start_epoch,
            "relabel_threshold": args.relabel_threshold,
            "fes": args.fes,
            "fes_threshold": args.fes_threshold,
            "fes_matrix": (args.fes_matrix or f"{args.protocol} protocol") if args.fes else None,
        },
        **recipe.fit_arguments(args, teaching=teaching),
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
