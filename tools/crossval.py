"""Tests on other data sets: what test_CK48.py and test_JAFFE.py share."""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.augment import Augmentation
from data.faces import Faces
from data.folds import Fold, overlap
from engine import Scores, Stop, TrainState, autocast, evaluate, fit, network_predictor
from model import Network
from tools import cli
from tools.report import format_table, report_split
from utils import derive_seed, load_checkpoint, save_checkpoint

# As published for CK+: brightness and contrast vary between its recordings.
AUGMENTATION = Augmentation(jitter=0.5)


def crossval_parser(*, mode: str, why: str) -> argparse.ArgumentParser:
    """The flags of fine-tuning on folds, as a parent parser; `mode` is the default."""
    parser = argparse.ArgumentParser(
        add_help=False,
        parents=[
            cli.sgd_parser(
                learning_rate=0.01794073,
                why="the published value; it falls to 0 as a cosine",
                drop_path_prob=None,
                drop_path_why="what the checkpoint says, else 0.2 as published; it goes on rising "
                "from the checkpoint's epoch",
            ),
            cli.training_parser(epochs=60),
        ],
    )
    # fmt: off
    add = parser.add_argument_group("the test").add_argument
    add("--mode", choices=["finetune", "evaluate"], default=mode,
        help=f"fine-tune on each fold, or test the checkpoint as it is (default: {mode}, {why})")
    # fmt: on
    return parser


def open_folds(run: Path, args: Mapping[str, Any]) -> tuple[list[dict], Callable[[], None]]:
    """The results of the folds that `run` has finished, and what saves that list as it grows."""
    path = run / "checkpoint.pt"
    done = load_checkpoint(path, ["folds"])["folds"] if path.exists() else []

    def save() -> None:
        save_checkpoint(path, "folds", {"folds": done, "args": dict(args)})

    # At once, so that a run interrupted in its first fold can be resumed.
    save()
    return done, save


def finetune_fold(
    model: Network,
    faces: Faces,
    fold: Fold,
    *,
    device: torch.device,
    amp: str,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    warmup_epochs: int,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    drop_path_at: Callable[[int], float],
    auxiliary_weight: float,
    grad_clip: float,
    report_freq: int,
    limit_batches: int | None,
    compile_forward: bool,
    stop: Stop,
) -> dict[str, Any]:
    """Fine-tune `model` on a fold; plain values and tensors of what it then makes of its test part.

    `logits` (M, K) and `test_index` (M,) after the last epoch, the accuracy then and at the best
    epoch (an oracle), and how many test images share a subject or a sequence with training.
    """
    train_index, test_index = fold
    model = model.to(device)
    training, test = (faces.split(index).map(lambda t: t.to(device)) for index in fold)
    optimizer = torch.optim.SGD(
        model.parameters(),
        learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )
    state, precision = TrainState(), autocast(device, amp)
    fit(
        model,
        optimizer,
        training,
        {"test": test},
        state=state,
        epochs=epochs,
        batch_size=batch_size,
        augmentation=AUGMENTATION,
        learning_rate=learning_rate,
        warmup_epochs=warmup_epochs,
        drop_path_at=drop_path_at,
        auxiliary_weight=auxiliary_weight,
        grad_clip=grad_clip,
        seed=seed,
        precision=precision,
        report_freq=report_freq,
        limit_batches=limit_batches,
        compile_forward=compile_forward,
        save=lambda _: None,
        stop=stop,
    )
    scores = evaluate(
        network_predictor(model), test, batch_size=batch_size, precision=precision, stop=stop
    )
    return {
        "logits": scores.logits,
        "test_index": test_index,
        "accuracy": scores.accuracy,
        "oracle": max(record["test_accuracy"] for record in state.history),
        "seconds": sum(record["seconds"] for record in state.history),
        "trained_on": len(train_index),
        "subjects_shared": overlap(train_index, test_index, faces.subjects),
        "sequences_shared": overlap(train_index, test_index, faces.sequences),
    }


def cross_validate(
    load: Callable[[], Network],
    faces: Faces,
    folds: Sequence[Fold],
    *,
    done: list[dict[str, Any]],
    save: Callable[[], None],
    report: Callable[[str], None],
    seed: int,
    **options: Any,
) -> None:
    """Fine-tune what `load()` gives on each fold that `done` lacks, adding its result to `done`.

    `save()` is called after every fold; `options` are those of `finetune_fold`.
    """
    for number, fold in enumerate(folds[len(done) :], len(done) + 1):
        report(f"fold {number} of {len(folds)}: {len(fold[0])} to train on, {len(fold[1])} to test")
        # Numbers of its own for each fold, the same when it is run again.
        fold_seed = derive_seed(seed, number)
        torch.manual_seed(fold_seed)
        done.append(finetune_fold(load(), faces, fold, seed=fold_seed, **options))
        report("fold {}: {:.2f} % after the last epoch".format(number, done[-1]["accuracy"]))
        save()


def vote(logits: Tensor, labels: Tensor, sequences: Sequence[str]) -> float:
    """Accuracy in percent when the images of a sequence vote; the mean probability breaks ties."""
    p = logits.double().softmax(dim=1)
    votes = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).double()
    names = sorted(set(sequences))
    number = {name: k for k, name in enumerate(names)}
    which = torch.tensor([number[name] for name in sequences])
    # Below half a vote in sum, so that it only ever breaks ties.
    ballots = votes + 0.5 * p / len(sequences)
    sums = torch.zeros(len(names), logits.shape[1], dtype=torch.float64)
    sums.index_add_(0, which, ballots)
    truth = torch.zeros(len(names), dtype=torch.int64)
    truth[which] = labels
    return 100.0 * (sums.argmax(dim=1) == truth).double().mean().item()


def summarise_folds(
    name: str, results: Sequence[dict[str, Any]], faces: Faces, classes: Sequence[str], run: Path
) -> dict[str, Any]:
    """The figures of a cross-validation; writes the report and the confusion over all folds.

    Means and deviations (of the population of folds) in percent, over folds.
    """
    index = torch.cat([result["test_index"] for result in results])
    logits = torch.cat([result["logits"] for result in results])
    labels = faces.labels[index]
    loss = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    by_sequence = [
        vote(
            result["logits"],
            faces.labels[result["test_index"]],
            [faces.sequences[row] for row in result["test_index"].tolist()],
        )
        for result in results
    ]
    last = [result["accuracy"] for result in results]
    oracle = [result["oracle"] for result in results]
    times = torch.bincount(index, minlength=len(faces.labels))
    pooled = report_split(name, Scores(logits, labels, loss), classes, run)
    return {
        **pooled,
        "accuracy": statistics.mean(last),
        "deviation": statistics.pstdev(last),
        "pooled_accuracy": pooled["accuracy"],
        "sequence_accuracy": statistics.mean(by_sequence),
        "sequence_deviation": statistics.pstdev(by_sequence),
        "oracle_accuracy": statistics.mean(oracle),
        "folds": last,
        "never_tested": int((times == 0).sum()),
        "tested_twice": int((times > 1).sum()),
        "subjects_shared": sum(result["subjects_shared"] for result in results),
        "sequences_shared": sum(result["sequences_shared"] for result in results),
    }


def log_folds(log: logging.Logger, name: str, figures: Mapping[str, Any], run: Path) -> None:
    """Log the table that ends a cross-validation."""
    count = len(figures["folds"])
    rows = [
        ["last epoch, per image", figures["accuracy"], figures["deviation"]],
        ["last epoch, images of a sequence vote", figures["sequence_accuracy"],
         figures["sequence_deviation"]],
        ["oracle: best epoch of each fold", figures["oracle_accuracy"], ""],
    ]  # fmt: skip
    columns = [f"{name}, top-1 accuracy in %", f"mean of {count} folds", "deviation"]
    log.info(
        "\n%s\n\n%d test images of %d share a subject with training, %d a sequence; %d images "
        "were never tested, %d more than once\nreport and picture in %s",
        format_table(columns, rows), figures["subjects_shared"], figures["images"],
        figures["sequences_shared"], figures["never_tested"], figures["tested_twice"], run,
    )  # fmt: skip
