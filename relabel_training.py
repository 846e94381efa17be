"""Fine-tune a trained network on FER2013 while repairing doubtful labels.

    python relabel_training.py --batch_size 64 --learning_rate 0.001 --relabel_threshold 0.2 \
        --fes True --fes_threshold 0.03 --checkpoint checkpoint

From the second epoch on, a label that the network doubts is replaced for that step by the class
that it finds likeliest: with FES only where the two expressions are similar. `--relabel_threshold
0` repairs nothing and so is the control. Writes a run folder below --model_path with what
train_FER2013.py writes, and `changes.csv`: of each epoch's labels, how many of each class became
which.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from data.augment import Augmentation, spread
from data.fer2013 import CLASSES, load_fer2013
from data.fes import PUBLISHED_FES, TRAINING_FES, load_fes
from data.relabel import Changes, relabel, truth_batches
from engine import Relabel, TrainState, autocast, fit, rising, stop_on_signals
from model import build_network
from tools import cli
from tools.training import report_run, saver
from tools.weights import (
    DROP_PATH_PROB,
    checkpoint_parser,
    load_trained,
    network_parser,
    require_weights,
)
from utils import (
    create_run_folder,
    describe_machine,
    load_checkpoint,
    load_state,
    open_log,
    seed_everything,
    write_text,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            cli.common_parser(batch_size=64, batch_why="the published value", seed=0),
            cli.folder_parser(label="relabel"),
            cli.run_parser(),
            cli.sgd_parser(
                learning_rate=0.02272721,
                why="the published value; it falls to 0 as a cosine",
                drop_path_prob=None,
                drop_path_why="what the checkpoint says, else 0.2 as published; it goes on rising "
                "from the checkpoint's epoch",
            ),
            cli.training_parser(epochs=100),
            checkpoint_parser(why="ideally saved before they converged"),
            network_parser(),
        ],
    )
    # fmt: off
    add = parser.add_argument_group("relabelling").add_argument
    add("--relabel_threshold", type=cli.non_negative, default=0.2, metavar="T",
        help="a label is doubtful when the likeliest class is less than this more probable "
        "(default: 0.2, the published value)")
    add("--fes", type=cli.true_or_false, default=True, metavar="True|False",
        help="repair only to similar expressions (default: True, the published method)")
    add("--fes_threshold", type=cli.non_negative, default=0.03, metavar="T",
        help="expressions are similar above this (default: 0.03, the published value)")
    add("--fes_matrix", metavar="FILE",
        help="a matrix that tools.fes wrote (default: that of the Training rows of FER+, or of all "
        "its rows with --protocol paper, as published)")
    # fmt: on
    return parser


def tabulate(epoch: int, matrix: Tensor) -> list[dict[str, Any]]:
    """A row for each pair of classes: how many labels of the one became the other in `epoch`."""
    return [
        {"epoch": epoch, "given": given, "new": new, "labels": int(matrix[i, j])}
        for i, given in enumerate(CLASSES)
        for j, new in enumerate(CLASSES)
    ]


def main(args: argparse.Namespace) -> dict[str, Any]:
    log = open_log()
    device = cli.resolve_device(args.device, args.gpu)
    precision = autocast(device, args.amp)
    if args.fes_matrix is not None:
        fes = load_fes(args.fes_matrix)
    else:
        fes = TRAINING_FES if args.protocol == "clean" else PUBLISHED_FES
    fes = torch.tensor(fes, dtype=torch.float32, device=device) if args.fes else None

    seed_everything(args.seed)
    if args.resume is None:
        path = require_weights(args.checkpoint, args.model_path)
        start = load_trained(
            path, layers=args.layers, init_channels=args.init_channels, arch=args.arch
        )
        model, description, state = start.model, start.description, TrainState()
        start_epoch, planned = start.epoch, start.epochs or args.epochs
        given = (args.drop_path_prob, start.drop_path_prob, DROP_PATH_PROB)
        drop_path_prob = next(p for p in given if p is not None)
    else:
        run = Path(args.resume)
        resumed = load_checkpoint(run / "checkpoint.pt", ["training"])
        state, description = TrainState(**resumed["state"]), resumed["model"]
        start_epoch, planned = resumed["start_epoch"], resumed["epochs"]
        drop_path_prob = resumed["drop_path_prob"]
        model = build_network(description)
        load_state(model, resumed["state_dict"], run / "checkpoint.pt")
    splits = load_fer2013(args.data, report=log.info)
    splits = {name: split.map(lambda t: t.to(device)) for name, split in splits.items()}
    if args.resume is None:
        run = create_run_folder(args.model_path, args.save, "relabel")
    log = open_log(run)
    model = model.to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        args.learning_rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        nesterov=args.nesterov,
    )
    if args.resume is not None:
        optimizer.load_state_dict(resumed["optimizer"])
    log.info("%s", describe_machine(device))
    log.info("run folder %s; from %s, epoch %d", run, args.checkpoint, start_epoch)

    training = splits["Training"]
    epoch_changes: dict[int, Changes] = {}
    save_training = saver(
        run,
        model,
        optimizer,
        description=description,
        protocol=args.protocol,
        epochs=planned,
        drop_path_prob=drop_path_prob,
        args=vars(args),
        start_epoch=start_epoch,
    )

    def relabel_at(epoch: int) -> Relabel | None:
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
        changes = Changes(
            lambda logits, labels: relabel(
                logits,
                labels,
                threshold=args.relabel_threshold,
                fes=fes,
                fes_threshold=args.fes_threshold,
            ),
            device,
            truth,
        )
        if state.step > 0:
            changes.counts.copy_(torch.tensor(state.extra["counts"]))
        epoch_changes[epoch] = changes
        return changes

    def save(state: TrainState) -> None:
        if state.step > 0:
            changes = epoch_changes.get(state.epoch)
            state.extra["counts"] = None if changes is None else changes.counts.tolist()
        else:
            state.extra.pop("counts", None)
        if state.step == 0 and (changes := epoch_changes.pop(state.epoch - 1, None)):
            repairs = changes.read()
            state.history[-1] |= {"labels": repairs.seen, "changed": repairs.changed}
            if repairs.wrong is not None:
                state.history[-1] |= {"precision": repairs.precision, "recall": repairs.recall}
            table = pd.DataFrame(repairs.matrix.numpy(), index=CLASSES, columns=CLASSES)
            log.info(
                "%d of %d labels changed; rows as given, columns as trained on\n%s",
                repairs.changed, repairs.seen, table.to_string(),
            )  # fmt: skip
            rows = state.extra.setdefault("changes", [])
            rows += tabulate(state.epoch, repairs.matrix)
            write_text(run / "changes.csv", pd.DataFrame(rows).to_csv(index=False))
        save_training(state)

    limit = args.limit_batches and args.limit_batches * args.batch_size
    evaluations = {name: spread(splits[name], limit) for name in ("PublicTest", "PrivateTest")}
    with stop_on_signals(args.time_limit) as stop:
        fit(
            model,
            optimizer,
            training,
            evaluations,
            state=state,
            epochs=args.epochs,
            batch_size=args.batch_size,
            augmentation=Augmentation(cutout=args.cutout_length if args.cutout else 0),
            learning_rate=args.learning_rate,
            drop_path_at=lambda epoch: rising(start_epoch + epoch, planned, drop_path_prob),
            warmup_epochs=args.warmup_epochs,
            auxiliary_weight=args.auxiliary_weight,
            grad_clip=args.grad_clip,
            seed=args.seed,
            precision=precision,
            report_freq=args.report_freq,
            limit_batches=args.limit_batches,
            compile_forward=args.compile,
            save=save,
            stop=stop,
            relabel_at=relabel_at,
        )
        summary, table = report_run(
            run,
            model,
            evaluations,
            history=state.history,
            batch_size=args.batch_size,
            precision=precision,
            stop=stop,
            about={
                "script": "relabel_training.py",
                "protocol": args.protocol,
                "seed": args.seed,
                "checkpoint": args.checkpoint,
                "start_epoch": start_epoch,
                "relabel_threshold": args.relabel_threshold,
                "fes": args.fes,
                "fes_threshold": args.fes_threshold,
                "genotype": description["genotype"],
                "epochs": args.epochs,
            },
        )
    log.info("\n%s\n\nreports and pictures in %s", table, run)
    return summary


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
