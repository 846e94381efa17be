"""Tests on other data sets: what test_CK48.py and test_JAFFE.py share."""

from __future__ import annotations

import argparse
import copy
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from common import arguments, cli, recipe
from common.checkpoints import (
    is_finite,
    is_number,
    parts_of,
    restore_state,
    resume_optimisation,
)
from common.fold_figures import summarise_folds, tabulate_folds, vote
from common.report import format_table, report_split, write_summary
from common.weights import finetuning_parsers, load_trained, require_weights
from data.augment import spread_rows
from data.faces import Faces
from data.folds import Fold, overlap
from data.views import over_views
from engine import TrainState, autocast, evaluate, final_weights, fit, network_predictor
from model import Network
from utils import (
    LOGGER_NAME,
    Stop,
    UserError,
    create_run_folder,
    derive_seed,
    describe_machine,
    load_checkpoint,
    load_state,
    open_log,
    save_checkpoint,
    seed_everything,
    stop_on_signals,
)

_log = logging.getLogger(LOGGER_NAME)

JITTER = 0.5  # of brightness and contrast, as published for CK+


def crossval_parser(
    *, name: str, data: str, batch_size: int, mode: str, why: str
) -> argparse.ArgumentParser:
    """All flags of a test on another data set, as a parent parser; `mode` is the default."""
    parser = argparse.ArgumentParser(
        add_help=False,
        parents=[
            arguments.common_parser(
                data=data, batch_size=batch_size, batch_why="the published value", seed=0
            ),
            arguments.folder_parser(label=name.lower()),
            arguments.run_parser(script=f"test_{name}.py"),
            *finetuning_parsers(learning_rate=0.01794073, epochs=60, why="trained on FER2013"),
            arguments.tta_parser(),
        ],
    )
    add = parser.add_argument_group("the test").add_argument
    add(
        "--fold",
        type=arguments.positive_int,
        metavar="K",
        help="fine-tune on the K-th fold alone, as a job of its own; tools.collect merges them "
        "(default: all folds, one after the other)",
    )
    add(
        "--mode",
        choices=["finetune", "evaluate"],
        default=mode,
        help=f"fine-tune on each fold, or test the checkpoint as it is (default: {mode}, {why})",
    )
    return parser


class FoldsFile:
    """`run`/checkpoint.pt of a cross-validation: the folds that are done, and the one under way.

    `done` holds what `finetune_fold` returned, `under_way` what it last saved, or None. `inputs`
    are digests of what the flags "checkpoint" and "data" name; UserError when a run goes on with
    others.
    """

    def __init__(self, run: Path, args: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self.path = run / "checkpoint.pt"
        self._rest = {"args": dict(args), "inputs": dict(inputs)}
        self.done: list[dict[str, Any]] = []
        self.under_way: dict[str, Any] | None = None
        if self.path.exists():
            found = load_checkpoint(self.path, ["folds"])
            with parts_of(self.path):
                for flag, digest in inputs.items():
                    if found["inputs"][flag] != digest:
                        raise UserError(
                            f"--{flag} {args[flag]}: no longer what {run} began with, expected "
                            "the same"
                        )
                self.done, self.under_way = list(found["folds"]), found["under_way"]
        # At once, so that a run interrupted in its first fold can be resumed.
        self.save(self.under_way)

    def save(self, under_way: dict[str, Any] | None) -> None:
        """Save the folds that are done, and the state of the one under way."""
        self.under_way = under_way
        content = {"folds": self.done, "under_way": under_way, **self._rest}
        save_checkpoint(self.path, "folds", content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def finetune_fold(
    model: Network,
    faces: Faces,
    fold: Fold,
    *,
    device: torch.device,
    precision: torch.autocast,
    sgd: Mapping[str, Any],
    ema: float,
    under_way: Mapping[str, Any] | None,
    source: Path,
    save: Callable[[dict[str, Any]], None],
    stop: Stop,
    batch_size: int,
    tta: str,
    **options: Any,
) -> dict[str, Any]:
    """Fine-tune `model` on a fold; plain values and tensors of what it then makes of its test part.

    `sgd` is what torch.optim.SGD takes, `ema` the decay of the average, `options` the other
    arguments of `engine.fit`; `save` gets what a resumed fold takes as `under_way`, of the file
    `source`. Returns `logits` (M, K), over the views of `tta`, and `test_index` (M,) after the last
    epoch, the accuracy then and at the best epoch in a single view (an oracle), and how many test
    images share a subject or a sequence with training.
    """
    train_index, test_index = fold
    model = model.to(device)
    training, test = (faces.split(index).map(lambda t: t.to(device)) for index in fold)
    optimizer, state = torch.optim.SGD(model.parameters(), **sgd), TrainState()
    average = recipe.averaged(model, ema)
    if under_way is not None:
        state = resume_fold(model, optimizer, average, under_way, source)
    fit(
        model,
        optimizer,
        training,
        {"test": test},
        state=state,
        batch_size=batch_size,
        precision=precision,
        save=lambda state: save(
            {
                "state_dict": model.state_dict(),
                "average": None if average is None else average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "state": state.to_dict(),
            }
        ),
        stop=stop,
        average=average,
        **options,
    )
    scores = evaluate(
        over_views(network_predictor(final_weights(model, average)), tta),
        test,
        batch_size=batch_size,
        precision=precision,
        stop=stop,
    )
    return {
        "logits": scores.logits,
        "test_index": test_index,
        "accuracy": scores.accuracy,
        "oracle": max(record["test_accuracy"] for record in state.history),
        "seconds": sum(record["seconds"] for record in state.history),
        "subjects_shared": overlap(train_index, test_index, faces.subjects),
        "sequences_shared": overlap(train_index, test_index, faces.sequences),
    }


def resume_fold(
    model: Network,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    under_way: Any,
    source: Path,
) -> TrainState:
    """Where the fold `under_way` of the file `source` stands, its parts put in place.

    Raises UserError when they are not those of such a fold.
    """
    with parts_of(source):
        load_state(model, under_way["state_dict"], source)
        resume_optimisation(optimizer, average, under_way, source)
        return restore_state(TrainState, under_way["state"])


def check_done(done: Sequence[dict[str, Any]], folds: Sequence[Fold], classes: int) -> None:
    """Raise ValueError unless `done` are results of the first of `folds`."""
    for result, (_, test_index) in zip(done, folds[: len(done)], strict=True):
        if not result["test_index"].equal(test_index):
            raise ValueError("a fold of other images")
        if not is_finite(result["logits"], (len(test_index), classes)):
            raise ValueError("logits of other images")
        for name in ("accuracy", "oracle", "seconds", "subjects_shared", "sequences_shared"):
            if not is_number(result[name]):
                raise ValueError(f"{name} {result[name]!r}")


def cross_validate(
    model: Network,
    faces: Faces,
    folds: Mapping[int, Fold],
    file: FoldsFile,
    *,
    run: Path,
    seed: int,
    name: str,
    classes: Sequence[str],
    about: Mapping[str, Any],
    **options: Any,
) -> dict[str, Any]:
    """Fine-tune a copy of `model` on each of `folds`, by number, that `file` lacks; report all.

    `options` are those of `finetune_fold`. Returns the summary, of which `about` is a part.
    """
    with parts_of(file.path):
        check_done(file.done, list(folds.values()), len(classes))
    for number, fold in list(folds.items())[len(file.done) :]:
        _log.info("fold %d of %d: %d to train on, %d to test",
                  number, about["folds"], len(fold[0]), len(fold[1]))  # fmt: skip
        # Numbers of its own for each fold, the same when it is run again.
        fold_seed = derive_seed(seed, number)
        torch.manual_seed(fold_seed)
        result = finetune_fold(
            copy.deepcopy(model),
            faces,
            fold,
            seed=fold_seed,
            under_way=file.under_way,
            source=file.path,
            save=file.save,
            **options,
        )
        file.done.append(result)
        file.save(None)
        _log.info("fold %d: %.2f %% after the last epoch", number, result["accuracy"])
    figures = summarise_folds(name, file.done, faces, classes, run)
    seconds = sum(result["seconds"] for result in file.done)
    table = tabulate_folds(name, figures)
    _log.info("\n%s\n\nreport and picture in %s", table, run)
    return write_summary(run, seconds=seconds, figures={name: figures}, **about)


def evaluate_faces(
    model: Network,
    faces: Faces,
    *,
    device: torch.device,
    precision: torch.autocast,
    batch_size: int,
    limit_batches: int | None,
    tta: str,
    stop: Stop,
    run: Path,
    name: str,
    classes: Sequence[str],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Test `model` as it is on the images of `classes`, the first of its own, and report it.

    Other images are left out and other answers masked. Returns the summary, of which `about` is a
    part.
    """
    shared = (faces.labels < len(classes)).nonzero().flatten()
    shared = spread_rows(shared, limit_batches and limit_batches * batch_size)
    predict, started = over_views(network_predictor(model.to(device)), tta), time.monotonic()
    scores = evaluate(
        lambda images: predict(images)[:, : len(classes)],
        faces.split(shared).map(lambda tensor: tensor.to(device)),
        batch_size=batch_size,
        precision=precision,
        stop=stop,
    )
    sequences = [faces.sequences[row] for row in shared.tolist()]
    figures = report_split(name, scores, classes, run)
    figures["sequence_accuracy"] = vote(scores.logits, scores.labels, sequences)
    seconds = time.monotonic() - started
    rows = [
        [f"{len(classes)} classes, not fine-tuned", figures["images"], figures["accuracy"]],
        ["images of a sequence vote", figures["images"], figures["sequence_accuracy"]],
    ]
    table = format_table([name, "images", "top-1 accuracy in %"], rows)
    _log.info("\n%s\n\nreport and picture in %s", table, run)
    return write_summary(run, seconds=seconds, figures={name: figures}, **about)


def main_on(
    args: argparse.Namespace,
    *,
    name: str,
    load: Callable[[Callable[[str], None]], Faces],
    choose_folds: Callable[[Faces], Sequence[Fold]],
    classes: Sequence[str],
    shared: Sequence[str],
    follows_protocol: bool,
) -> dict[str, Any]:
    """The `main` of the test on the set `name`, whose flags are those of `crossval_parser`.

    `load(report)` gives the set, labelled by `classes`; of these the first, `shared`, are those
    that FER2013 has too. Whether folds differ by --protocol, `follows_protocol` says.
    """
    log = open_log()
    device = cli.resolve_device(args.device, args.gpu)
    path = require_weights(args.checkpoint, args.model_path)
    trained = load_trained(
        path, layers=args.layers, init_channels=args.init_channels, arch=args.arch
    )
    faces = load(log.info)
    finetune = args.mode == "finetune"
    folds = dict(enumerate(choose_folds(faces), 1)) if finetune else {}
    if args.fold is not None and args.fold not in folds:
        expected = f"1 to {len(folds)}" if finetune else "none with --mode evaluate"
        raise UserError(f"--fold {args.fold}: expected {expected}")
    chosen = folds if args.fold is None else {args.fold: folds[args.fold]}
    seed_everything(args.seed)
    if args.resume is None:
        run = create_run_folder(args.model_path, args.save, name.lower())
    else:
        run = Path(args.resume)
    log = open_log(run)
    log.info("%s", describe_machine(device))
    log.info("run folder %s; from %s, epoch %d", run, path, trained.epoch)
    about = {
        "script": args.script,
        "protocol": args.protocol if finetune and follows_protocol else None,
        "seed": args.seed,
        "checkpoints": [str(path)],
        "genotype": trained.description["genotype"],
        "parameters": trained.model.size,
        "epochs": args.epochs if finetune else 0,
        "mode": args.mode,
        "fold": args.fold,
        "folds": len(folds) or None,
        "tta": args.tta,
    }
    common = {
        "tta": args.tta,
        "run": run,
        "name": name,
        "device": device,
        "precision": autocast(device, args.amp),
    }
    with stop_on_signals(args.time_limit, resumable=finetune) as stop:
        if not finetune:
            return evaluate_faces(
                trained.model,
                faces,
                classes=shared,
                batch_size=args.batch_size,
                limit_batches=args.limit_batches,
                about=about,
                stop=stop,
                **common,
            )
        limit = args.limit_batches and args.limit_batches * args.batch_size
        inputs = {"checkpoint": _digest(path.read_bytes()), "data": faces.digest()}
        return cross_validate(
            trained.model,
            faces,
            {k: (train, spread_rows(test, limit)) for k, (train, test) in chosen.items()},
            FoldsFile(run, vars(args), inputs),
            classes=classes,
            sgd=arguments.sgd_arguments(args),
            ema=args.ema,
            drop_path_at=lambda epoch: trained.drop_path_at(
                epoch, epochs=args.epochs, drop_path_prob=args.drop_path_prob
            ),
            about=about,
            stop=stop,
            **recipe.fit_arguments(args, jitter=JITTER),
            **common,
        )
