"""Tests on other data sets: what test_CK48.py and test_JAFFE.py share."""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from common.arguments import positive_int
from common.fold_figures import summarise_folds, tabulate_folds, vote
from common.report import format_table, report_split, write_summary
from common.training import weights_content
from common.weights import Trained
from data.batches import subsample_rows
from data.folds import Fold, overlap
from data.types import Faces
from data.views import tta_predict
from engine import Run, TrainState, evaluate, fit, image_limit, network_predictor
from runtime.errors import UserError, reading
from runtime.logs import LOGGER_NAME
from utils import derive_seed, save_checkpoint

_log = logging.getLogger(LOGGER_NAME)

JITTER = 0.5  # of brightness and contrast, as published for CK+


def add_crossval_arguments(parser: argparse.ArgumentParser, *, mode: str) -> None:
    """The flags of a test on another data set; `mode` is the default."""
    # fmt: off
    add = parser.add_argument_group("the test").add_argument
    add("--mode", choices=["finetune", "evaluate"], default=mode,
        help="fine-tune on each fold, or test the checkpoint as it is")
    add("--fold", type=positive_int, metavar="K",
        help="fine-tune on the K-th fold alone, as a job of its own; tools.collect merges them "
        "(default: all folds, one after the other)")
    add("--save_folds", action=argparse.BooleanOptionalAction, default=False,
        help="keep the weights of each fold as fold_K_weights.pt, which tools.predict reads")
    # fmt: on


def choose_fold(folds: Sequence[Fold], args: argparse.Namespace) -> dict[int, Fold]:
    """The folds by number from 1, or with --fold that one; each tests --limit_batches at most."""
    numbered = dict(enumerate(folds, 1))
    if args.fold is not None:
        if args.fold not in numbered:
            expected = f"1 to {len(folds)}" if folds else "none with --mode evaluate"
            raise UserError(f"--fold {args.fold}: expected {expected}")
        numbered = {args.fold: numbered[args.fold]}
    limit = image_limit(args, args.batch_size)
    return {k: (train, subsample_rows(test, limit)) for k, (train, test) in numbered.items()}


def summary_facts(
    trained: Trained, args: argparse.Namespace, folds: int, protocol: str | None
) -> dict[str, Any]:
    """What the summary says whatever the mode: arguments of `common.report.write_summary`."""
    return {
        "protocol": protocol,
        "checkpoints": [str(trained.path)],
        "genotype": trained.model.description["genotype"],
        "parameters": trained.model.size,
        "epochs": args.epochs if folds else 0,
        "details": {
            "mode": args.mode,
            "fold": args.fold,
            "folds": folds or None,
            "tta": args.tta,
        },
    }


class FoldsFile:
    """checkpoint.pt of a cross-validation: the folds that are done, and the current one.

    `done` holds what `finetune_fold` returned, `under_way` the state of the current fold or None.
    """

    def __init__(self, args: argparse.Namespace, run: Run) -> None:
        self.path = run.folder / "checkpoint.pt"
        self._rest = {"args": vars(args), "inputs": run.inputs}
        self.done: list[dict[str, Any]] = []
        self.under_way: dict[str, Any] | None = None
        if run.resumed is not None:
            with reading(self.path, "the folds of a cross-validation"):
                self.done, self.under_way = list(run.resumed["folds"]), run.resumed["under_way"]
        # At once, so that a run interrupted in its first fold can be resumed.
        self.save(self.under_way)

    def save(self, under_way: dict[str, Any] | None) -> None:
        """Save the folds that are done, and the state of the current one."""
        self.under_way = under_way
        content = {"folds": self.done, "under_way": under_way, **self._rest}
        save_checkpoint(self.path, "folds", content)

    def check_done(self, folds: Sequence[Fold]) -> None:
        """Raise UserError unless `done` are results of the first of `folds`."""
        with reading(self.path, "the folds of a cross-validation"):
            for result, (_, test_index) in zip(self.done, folds[: len(self.done)], strict=True):
                if not result["test_index"].equal(test_index):
                    raise ValueError("a fold of other images")
                figures = [result[name] for name in ("accuracy", "oracle", "seconds")]
                if not bool(
                    torch.tensor(figures).isfinite().all() and result["logits"].isfinite().all()
                ):
                    raise ValueError("a fold without finite figures")


def finetune_fold(
    trained: Trained,
    faces: Faces,
    classes: Sequence[str],
    number: int,
    fold: Fold,
    file: FoldsFile,
    args: argparse.Namespace,
    run: Run,
) -> dict[str, Any]:
    """Fine-tune a copy of the network on fold `number`; plain values and tensors of its test part.

    Continues `file.under_way` where there is one, and keeps its state there. Returns `logits`
    (M, K), over the views of --tta, and `test_index` (M,) after the last epoch, the accuracy then
    and at the best epoch in a single view (an oracle), and how many test images share a subject or
    a sequence with training.
    """
    train_index, test_index = fold
    training, test = (faces.split(index).to(run.device) for index in fold)
    model = copy.deepcopy(trained.model).to(run.device)
    train = TrainState(model, args, trained.drop_path(args), classes)
    if file.under_way is not None:
        train.load_state_dict(file.under_way, file.path)
    fit(
        train,
        training,
        {"test": test},
        args,
        run,
        save=lambda: file.save(train.state_dict()),
        jitter=JITTER,
    )
    predict = tta_predict(network_predictor(train.weights), args.tta)
    scores = evaluate(predict, test, args.batch_size, run)
    history = train.progress.history
    if args.save_folds:
        content = {**weights_content(train), "metrics": history[-1]}
        save_checkpoint(run.folder / f"fold_{number}_weights.pt", "weights", content)
    return {
        "logits": scores.logits,
        "test_index": test_index,
        "accuracy": scores.accuracy,
        "oracle": max(record["test_accuracy"] for record in history),
        "seconds": sum(record["seconds"] for record in history),
        "subjects_shared": overlap(train_index, test_index, faces.subjects),
        "sequences_shared": overlap(train_index, test_index, faces.sequences),
    }


def cross_validate(
    trained: Trained,
    faces: Faces,
    folds: Mapping[int, Fold],
    name: str,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    args: argparse.Namespace,
    run: Run,
) -> dict[str, Any]:
    """Fine-tune on each of `folds`, by number, that is not done yet; report all.

    Returns the summary, of which `facts` are a part.
    """
    file = FoldsFile(args, run)
    file.check_done(list(folds.values()))
    total = facts["details"]["folds"]
    for number, fold in list(folds.items())[len(file.done) :]:
        _log.info(
            "fold %d of %d: %d to train on, %d to test", number, total, len(fold[0]), len(fold[1])
        )
        # Each fold has its own random numbers, the same when it is run again.
        fold_args = argparse.Namespace(**{**vars(args), "seed": derive_seed(args.seed, number)})
        torch.manual_seed(fold_args.seed)
        result = finetune_fold(trained, faces, classes, number, fold, file, fold_args, run)
        file.done.append(result)
        file.save(None)
        _log.info("fold %d: %.2f %% after the last epoch", number, result["accuracy"])
    figures = summarise_folds(name, file.done, faces, classes, run.folder)
    seconds = sum(result["seconds"] for result in file.done)
    _log.info("\n%s\n\nreport and picture in %s", tabulate_folds(name, figures), run.folder)
    return write_summary(run.folder, args, seconds=seconds, figures={name: figures}, **facts)


def evaluate_faces(
    trained: Trained,
    faces: Faces,
    name: str,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    args: argparse.Namespace,
    run: Run,
) -> dict[str, Any]:
    """Test the network as it is on the images of `classes`, the first of its own, and report it.

    Other images are left out and other classes masked. Returns the summary, of which `facts` are a
    part.
    """
    started = time.monotonic()
    shared = (faces.labels < len(classes)).nonzero().flatten()
    shared = subsample_rows(shared, image_limit(args, args.batch_size))
    predict = tta_predict(network_predictor(trained.model.to(run.device)), args.tta)
    scores = evaluate(
        lambda images: predict(images)[:, : len(classes)],
        faces.split(shared).to(run.device),
        args.batch_size,
        run,
    )
    sequences = [faces.sequences[row] for row in shared.tolist()]
    figures = report_split(name, scores, classes, run.folder)
    figures["sequence_accuracy"] = vote(scores.logits, scores.labels, sequences)
    rows = [
        [f"{len(classes)} classes, not fine-tuned", figures["images"], figures["accuracy"]],
        ["images of a sequence vote", figures["images"], figures["sequence_accuracy"]],
    ]
    table = format_table([name, "images", "top-1 accuracy in %"], rows)
    _log.info("\n%s\n\nreport and picture in %s", table, run.folder)
    seconds = time.monotonic() - started
    return write_summary(run.folder, args, seconds=seconds, figures={name: figures}, **facts)
