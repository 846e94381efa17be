"""A training on FER2013: resumed, run, saved in its run folder, and reported."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.plots import draw_curves
from common.report import (
    drawing,
    format_table,
    report_split,
    rows_on_images,
    write_running_page,
    write_summary,
)
from common.weights import CHOSEN, class_names, require_classes
from data.batches import subsample
from data.types import DataSet, Split
from engine import Predict, TrainState, evaluate_splits, fit, image_limit
from model import build_network
from recipe.schedules import DropPath
from relabelling import Relabelling
from runtime.errors import reading
from runtime.files import write_rows
from runtime.logs import log
from runtime.processes import from_rank_zero
from runtime.run import Run, best_epoch, first_epoch_reaching
from utils import load_checkpoint, load_state, save_checkpoint

EVALUATED = ("PublicTest", "PrivateTest")
CHOSEN_BY, TEST_ACCURACY = "PublicTest_accuracy", "PrivateTest_accuracy"
# Weights saved when the training accuracy first reaches so many percent.
MILESTONES = {85.0: "85_weights.pt", 90.0: "90_weights.pt"}


def resume_training(run: Run, classes: Sequence[str], args: argparse.Namespace) -> TrainState:
    """The training that `run` resumes, as it was; UserError unless it was of `classes`."""
    checkpoint, path = run.resumed or {}, run.folder / "checkpoint.pt"
    with reading(path, "a checkpoint of the same script and version"):
        model = build_network(checkpoint["model"], str(path))
        own = class_names(checkpoint.get("classes"), checkpoint["model"]["num_classes"])
        require_classes(path, own, classes)
        # A larger --epochs at --resume stretches the ramp to the new length.
        start, epochs = checkpoint["start_epoch"], checkpoint["epochs"]
        if start == 0:
            epochs = max(epochs, args.epochs)
        drop_path = DropPath(start, epochs, checkpoint["drop_path_prob"])
    train = TrainState(model.to(run.device), args, drop_path, classes)
    train.load_state_dict(checkpoint, path)
    return train


def run_training(
    train: TrainState,
    data: DataSet,
    teacher: Predict | None,
    args: argparse.Namespace,
    run: Run,
    *,
    checkpoints: Sequence[str],
    relabelling: Relabelling | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train to the end and report; all is saved when the run is interrupted. Returns the summary.

    `checkpoints` and `details` are those of `report_training`.
    """
    log.info("%d parameters without the auxiliary head", train.model.num_parameters)
    log.info("%s", train.model.description["genotype"])
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
            relabelling=relabelling,
        )
        return report_training(
            train, evaluations, args, run, checkpoints=checkpoints, details=details
        )


def evaluation_splits(splits: Mapping[str, Split], args: argparse.Namespace) -> dict[str, Split]:
    """PublicTest and PrivateTest, at most --limit_batches batches of each."""
    limit = image_limit(args, args.batch_size)
    return {name: subsample(splits[name], limit) for name in EVALUATED}


def weights_content(train: TrainState) -> dict[str, Any]:
    """What a checkpoint of kind "weights" holds of a training."""
    return {
        "model": train.model.description,
        "state_dict": train.weights.state_dict(),
        "epoch": train.drop_path.start_epoch + train.progress.epoch,
        "epochs": train.drop_path.epochs,
        "drop_path_prob": train.drop_path.prob,
        "start_epoch": train.drop_path.start_epoch,
        "classes": list(train.classes),
    }


def save_training(train: TrainState, args: argparse.Namespace, run: Run) -> None:
    """Write what the run folder holds after an epoch: checkpoint.pt, weights and metrics.csv.

    `weights.pt` is of the last epoch, `best_val_weights.pt` of the best on PublicTest, the
    milestones of the first epoch that reached them. With the paper protocol `best_test_weights.pt`
    is of the best on PrivateTest: an oracle.
    """
    progress, history = train.progress, train.progress.history
    weights = weights_content(train)
    # Written first: if killed here, a resumed run writes the files below at its start.
    content = {**weights, **train.state_dict(), "args": vars(args), "inputs": run.inputs}
    save_checkpoint(run.folder / "checkpoint.pt", "training", content)
    if progress.step == 0 and history:
        chosen_by = {CHOSEN: CHOSEN_BY}
        if args.protocol == "paper":
            chosen_by["best_test_weights.pt"] = TEST_ACCURACY
        names = ["weights.pt"]
        names += [f for f, key in chosen_by.items() if best_epoch(history, key) == progress.epoch]
        names += [
            name
            for percent, name in MILESTONES.items()
            if first_epoch_reaching(history, "train_accuracy", percent) == progress.epoch
        ]
        for name in names:
            save_checkpoint(run.folder / name, "weights", {**weights, "metrics": history[-1]})
        write_rows(history, run.folder / "metrics.csv")
        if "changes" in progress.extra:
            write_rows(progress.extra["changes"], run.folder / "changes.csv")
        write_running_page(run.folder, args, history, args.epochs)


def report_training(
    train: TrainState,
    evaluations: Mapping[str, Split],
    args: argparse.Namespace,
    run: Run,
    *,
    checkpoints: Sequence[str],
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score the weights chosen on PublicTest; write reports, pictures and summary.json.

    They were chosen in a single view and are reported over the views of --tta. `checkpoints` are
    the weights that the run started from or learnt from; `details` go into the summary. Leaves the
    chosen weights in `train.model`.
    """
    model, history = train.model, train.progress.history
    best = history[best_epoch(history, CHOSEN_BY) - 1]
    # Read by the process that wrote it; others may not see the folder.
    chosen = from_rank_zero(lambda: load_weights_of(run.folder / CHOSEN, [best]))
    load_state(model, chosen["state_dict"], run.folder / CHOSEN)
    scores = evaluate_splits(model, evaluations, args.batch_size, run, args.tta)
    with drawing():
        draw_curves(history, run.folder / "curves.png")
    chosen_epoch, oracle = chosen["metrics"]["epoch"], best_epoch(history, TEST_ACCURACY)
    summary = write_summary(
        run.folder,
        args,
        protocol=args.protocol,
        checkpoints=checkpoints,
        genotype=model.description["genotype"],
        parameters=model.num_parameters,
        epochs=len(history),
        seconds=sum(record["seconds"] for record in history),
        figures={
            name: report_split(name, each, train.classes, run.folder)
            for name, each in scores.items()
        },
        details={
            "tta": args.tta,
            "chosen_epoch": chosen_epoch,
            "last_epoch": history[-1],
            "oracle": {"epoch": oracle, TEST_ACCURACY: history[oracle - 1][TEST_ACCURACY]},
            **(details or {}),
        },
    )

    def recorded(epoch: int) -> list[float]:
        return [history[epoch - 1][f"{name}_accuracy"] for name in scores]

    chosen_row = f"chosen on PublicTest (epoch {chosen_epoch})"
    rows: list[list[Any]] = [
        [chosen_row, *recorded(chosen_epoch)],
        [f"last epoch ({len(history)})", *recorded(len(history))],
        [f"oracle: best on PrivateTest (epoch {oracle})", *recorded(oracle)],
    ]
    if args.tta != "none":
        row = [f"{chosen_row}, --tta {args.tta}", *(s.accuracy for s in scores.values())]
        rows.insert(1, row)
        chosen_row = str(row[0])
    rows += rows_on_images(chosen_row, scores)
    table = format_table(["top-1 accuracy in %", *scores], rows)
    log.info("\n%s\n\nreports and pictures in %s", table, run.folder)
    return summary


def load_weights_of(path: Path, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The weights at `path`; UserError unless they are of an epoch of `history`."""
    weights = load_checkpoint(path, ["weights"])
    with reading(path, "the weights that this run saved"):
        if weights["metrics"] not in history:
            raise ValueError("of another run, or of an epoch that was run again")
    return weights
