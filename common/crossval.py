"""Tests on other data sets: what test_CK48.py and test_JAFFE.py share."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import arguments
from common.fold_figures import summarise_folds, tabulate_folds, vote
from common.manifest import digest
from common.report import count_images, format_table, report_split, write_summary
from common.start import check_inputs
from common.training import weights_content
from common.weights import Trained, load_start, require_classes
from data.batches import subsample_rows
from data.folds import Fold, overlap
from data.jaffe import EXAMPLE
from data.types import CLASSES, Faces
from engine import Scores, TrainState, evaluate, fit, image_limit, network_predictor
from model import Network
from recipe.adaptation import adapt_batch_norms
from recipe.views import tta_predict
from runtime.errors import UserError, reading
from runtime.logs import log
from runtime.run import Run
from utils import derive_seed, save_checkpoint

JITTER = 0.5  # of brightness and contrast, as published for CK+


def add_crossval_arguments(
    parser: argparse.ArgumentParser, script: str, *, mode: str, batch_size: int
) -> None:
    """The flags of a test on another data set; `mode` and `batch_size` are defaults."""
    # fmt: off
    add = parser.add_argument_group("the test").add_argument
    add("--mode", choices=["finetune", "evaluate"], default=mode,
        help="fine-tune on each fold, or test the checkpoint as it is")
    add("--fold", type=arguments.positive_int, metavar="K",
        help="fine-tune on the K-th fold alone, as a job of its own; tools.compare merges them "
        "(default: all folds, one after the other)")
    add("--save_folds", action=argparse.BooleanOptionalAction, default=False,
        help="keep the weights of each fold as fold_K_weights.pt, which tools.predict reads")
    add("--adapt_batch_norm", action=argparse.BooleanOptionalAction, default=False,
        help="normalise by the statistics of the test subject's images and their mirror images, "
        "without labels (AdaBN), and fine-tune on batches of one subject each. Transductive; "
        "favoured by sets such as JAFFE that show each subject with every expression equally often")
    # fmt: on
    arguments.add_checkpoint_arguments(parser)
    arguments.add_data_arguments(parser, batch_size=batch_size, seed=0)
    arguments.add_folder_arguments(parser)
    arguments.add_run_arguments(parser, script)
    published = 0.01 if script == "test_CK48.py" else None
    arguments.add_sgd_arguments(parser, learning_rate=0.01794073, published=published)
    arguments.add_training_arguments(parser, epochs=60)
    arguments.add_tta_argument(parser)


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
    and at the best epoch in a single view without adaptation (an oracle), and how many test images
    share a subject or a sequence with training.
    """
    train_index, test_index = fold
    training = faces.split(train_index, by_subject=args.adapt_batch_norm).to(run.device)
    test = faces.split(test_index).to(run.device)
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
    scores = evaluate_rows(train.weights, faces, test_index, args, run)
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
    args: argparse.Namespace,
    run: Run,
    faces: Faces,
    folds: Sequence[Fold],
    name: str,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Fine-tune --checkpoint on each of `folds` that is not done yet; report all.

    `name` is that of the set, `classes` of its labels. Returns the summary.
    """
    trained = _load_fer2013_network(args, faces)
    check_inputs(run, args, faces, trained.path)
    numbers = [*range(1, len(folds) + 1)]
    if args.fold not in (None, *numbers):
        raise UserError(f"--fold {args.fold}: expected 1 to {len(folds)}")
    file = FoldsFile(args, run)
    with run.interruptible(args.time_limit):
        for number in ([args.fold] if args.fold else numbers)[len(file.done) :]:
            train, test = folds[number - 1]
            fold = train, subsample_rows(test, image_limit(args, args.batch_size))
            sizes = map(len, fold)
            log.info("fold %d of %d: %d to train on, %d to test", number, len(folds), *sizes)
            if run.board is not None:
                run.board.begin(f"fold_{number}")
            # Each fold has its own random numbers, the same when it is run again.
            fold_args = argparse.Namespace(**{**vars(args), "seed": derive_seed(args.seed, number)})
            torch.manual_seed(fold_args.seed)
            result = finetune_fold(trained, faces, classes, number, fold, file, fold_args, run)
            file.done.append(result)
            file.save(None)
            log.info("fold %d: %.2f %% after the last epoch", number, result["accuracy"])
    figures = summarise_folds(name, file.done, faces, classes, run.folder)
    log.info("\n%s\n\nreport and picture in %s", tabulate_folds(name, figures), run.folder)
    seconds = sum(result["seconds"] for result in file.done)
    return _summarise(trained, args, run, {name: figures}, seconds, len(folds))


def evaluate_rows(
    model: Network, faces: Faces, rows: Tensor, args: argparse.Namespace, run: Run
) -> Scores:
    """Evaluate the images `rows`, int64 (M,), over the views of --tta.

    With --adapt_batch_norm each subject's images by the statistics of these.
    """
    parts = [torch.arange(len(rows))]
    if args.adapt_batch_norm:
        subjects = np.array(faces.subjects)[rows.numpy()]
        parts = [torch.from_numpy(np.flatnonzero(subjects == name)) for name in np.unique(subjects)]
    logits = []
    for part in parts:
        split = faces.split(rows[part]).to(run.device)
        network = adapt_batch_norms(model, split.images) if args.adapt_batch_norm else model
        predict = tta_predict(network_predictor(network), args.tta)
        logits.append(evaluate(predict, split, args.batch_size, run).logits)
    order = torch.cat(parts).argsort()  # undoes the grouping
    return Scores(torch.cat(logits)[order], faces.labels[rows])


def evaluate_faces(
    args: argparse.Namespace, run: Run, faces: Faces, name: str, classes: Sequence[str]
) -> dict[str, Any]:
    """Test --checkpoint as it is on the images of `classes`, which are its first ones; report it.

    Other images are left out and other classes masked. `name` is that of the set. Returns the
    summary.
    """
    if args.fold is not None:
        raise UserError(f"--fold {args.fold}: expected none with --mode evaluate")
    started = time.monotonic()
    trained = _load_fer2013_network(args, faces)
    known = (faces.labels < len(classes)).nonzero().flatten()
    tested = subsample_rows(known, image_limit(args, args.batch_size))
    with run.interruptible(args.time_limit, resumable=False):
        scores = evaluate_rows(trained.model.to(run.device), faces, tested, args, run)
    total = len(known)
    scores = Scores(scores.logits[:, : len(classes)], scores.labels, total=total)
    sequences = [faces.sequences[row] for row in tested.tolist()]
    figures = report_split(name, scores, classes, run.folder)
    figures["sequence_accuracy"] = vote(scores.logits, scores.labels, sequences)
    images = count_images(figures)
    rows = [
        [f"{len(classes)} classes, not fine-tuned", images, figures["accuracy"]],
        ["sequences, by vote of their images", len(set(sequences)), figures["sequence_accuracy"]],
    ]
    table = format_table([name, "number", "top-1 accuracy in %"], rows)
    log.info("\n%s\n\nreport and picture in %s", table, run.folder)
    return _summarise(trained, args, run, {name: figures}, time.monotonic() - started)


def _load_fer2013_network(args: argparse.Namespace, faces: Faces) -> Trained:
    """The network that --checkpoint means.

    Raises UserError unless it is of FER2013's classes, and all subjects of `faces` are known where
    --adapt_batch_norm needs them.
    """
    if args.adapt_batch_norm and "" in faces.subjects:
        raise UserError(
            "--adapt_batch_norm: a file name does not say who is on the image, expected names "
            f"such as {EXAMPLE}"
        )
    trained = load_start(args)
    require_classes(trained.path, trained.classes, CLASSES)
    return trained


def _summarise(
    trained: Trained,
    args: argparse.Namespace,
    run: Run,
    figures: Mapping[str, Any],
    seconds: float,
    folds: int | None = None,
) -> dict[str, Any]:
    """Write the summary; `folds` is None for a network that is not fine-tuned."""
    return write_summary(
        run.folder,
        args,
        protocol=args.protocol if folds else None,
        checkpoints=[str(trained.path)],
        genotype=trained.model.description["genotype"],
        parameters=trained.model.num_parameters,
        epochs=args.epochs if folds else 0,
        seconds=seconds,
        figures=figures,
        details={
            "mode": args.mode,
            "fold": args.fold,
            "folds": folds,
            "tta": args.tta,
            "adapt_batch_norm": args.adapt_batch_norm,
            "sha256": digest(trained.path),
        },
    )
