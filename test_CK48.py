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
from pathlib import Path
from typing import Any

from data.ck48 import CK_CLASSES, load_ck48
from data.fer2013 import Split
from data.folds import published_ck48_folds, subject_folds
from engine import autocast, evaluate, stop_on_signals
from tools import cli
from tools.crossval import (
    cross_validate,
    crossval_parser,
    log_folds,
    open_folds,
    summarise_folds,
)
from tools.report import format_table, report_split, write_summary
from tools.weights import checkpoint_parser, load_trained, network_parser, require_weights
from utils import create_run_folder, describe_machine, open_log, seed_everything

SHARED = len(CK_CLASSES) - 1  # classes that CK+ and FER2013 have alike and in the same order


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            cli.common_parser(
                data="CK+48 as a folder, a folder that holds it",
                batch_size=64,
                batch_why="the published value",
                seed=0,
            ),
            cli.folder_parser(label="ck48"),
            cli.run_parser(),
            checkpoint_parser(why="trained on FER2013"),
            network_parser(),
            crossval_parser(mode="finetune", why="as published"),
        ],
    )
    # fmt: off
    add = parser.add_argument_group("the folds").add_argument
    add("--folds", type=cli.positive_int, default=10, metavar="K",
        help="folds: of whole subjects, or the published ranges with --protocol paper "
        "(default: 10, published beside 8)")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    log = open_log()
    device = cli.resolve_device(args.device, args.gpu)
    path = require_weights(args.checkpoint, args.model_path)
    flags = {"layers": args.layers, "init_channels": args.init_channels, "arch": args.arch}
    trained = load_trained(path, **flags)
    faces = load_ck48(args.data, report=log.info)
    if args.mode == "evaluate":
        folds = []
    elif args.protocol == "paper":
        folds = published_ck48_folds(faces.labels, args.folds)
    else:
        folds = subject_folds(faces.subjects, faces.labels, args.folds, args.seed)
    seed_everything(args.seed)
    if args.resume is None:
        run = create_run_folder(args.model_path, args.save, "ck48")
    else:
        run = Path(args.resume)
    log = open_log(run)
    log.info("%s", describe_machine(device))
    log.info("run folder %s; from %s, epoch %d", run, path, trained.epoch)
    about = {
        "script": "test_CK48.py",
        "protocol": args.protocol,
        "run": str(run),
        "seed": args.seed,
        "checkpoint": str(path),
        "mode": args.mode,
    }

    if args.mode == "evaluate":
        shared = (faces.labels < SHARED).nonzero().flatten()
        part: Split = faces.split(shared).map(lambda tensor: tensor.to(device))
        model = trained.model.to(device).eval()
        with stop_on_signals(args.time_limit) as stop:
            scores = evaluate(
                lambda images: model(images)[0][:, :SHARED],
                part,
                batch_size=args.batch_size,
                precision=autocast(device, args.amp),
                stop=stop,
            )
        figures = report_split("CK48", scores, CK_CLASSES[:SHARED], run)
        summary = {**about, "figures": {"CK48": figures}}
        write_summary(summary, run)
        rows = [["six shared classes, not fine-tuned", figures["images"], figures["accuracy"]]]
        table = format_table(["CK+, top-1 accuracy in %", "images", ""], rows)
        log.info("\n%s\n\nreport and picture in %s", table, run)
        return summary

    done, save = open_folds(run, vars(args))
    with stop_on_signals(args.time_limit) as stop:
        cross_validate(
            lambda: load_trained(path, **flags).model,
            faces,
            folds,
            done=done,
            save=save,
            report=log.info,
            seed=args.seed,
            device=device,
            amp=args.amp,
            epochs=args.epochs,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            warmup_epochs=args.warmup_epochs,
            momentum=args.momentum,
            nesterov=args.nesterov,
            weight_decay=args.weight_decay,
            drop_path_at=lambda epoch: trained.drop_path_at(
                epoch, epochs=args.epochs, drop_path_prob=args.drop_path_prob
            ),
            auxiliary_weight=args.auxiliary_weight,
            grad_clip=args.grad_clip,
            report_freq=args.report_freq,
            limit_batches=args.limit_batches,
            compile_forward=args.compile,
            stop=stop,
        )
    figures = summarise_folds("CK48", done, faces, CK_CLASSES, run)
    seconds = sum(result["seconds"] for result in done)
    summary = {**about, "epochs": args.epochs, "seconds": seconds, "figures": {"CK48": figures}}
    write_summary(summary, run)
    log_folds(log, "CK+", figures, run)
    return summary


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
