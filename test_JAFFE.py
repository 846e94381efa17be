"""Test a network trained on FER2013 on JAFFE, as it is or fine-tuned on the other subjects.

    python test_JAFFE.py --checkpoint checkpoint

`--mode evaluate` scores the checkpoint on all 213 images; `--mode finetune` leaves one subject out
at a time, and its main figure is the mean over subjects of the accuracy after the last epoch.
Writes a run folder below --model_path: `log.txt`, report and confusion matrix, `summary.json`, and
with fine-tuning `checkpoint.pt`, the finished folds, which --resume does not run again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from data.fer2013 import CLASSES
from data.folds import leave_one_subject_out
from data.jaffe import BOX, load_jaffe
from engine import autocast, evaluate, network_predictor, stop_on_signals
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            cli.common_parser(
                data="JAFFE as a folder, a folder that holds it",
                batch_size=16,
                batch_why="the published value",
                seed=0,
            ),
            cli.folder_parser(label="jaffe"),
            cli.run_parser(),
            checkpoint_parser(why="trained on FER2013"),
            network_parser(),
            crossval_parser(mode="evaluate", why="as published"),
        ],
    )
    # fmt: off
    add = parser.add_argument_group("the frames").add_argument
    add("--crop", type=box, default=BOX, metavar="LEFT,TOP,RIGHT,BOTTOM|none",
        help="part of the 256x256 frame that is taken (default: 56,76,204,224, which frames faces "
        "as FER2013 does; images in class folders are taken whole)")
    # fmt: on
    return parser


def box(text: str) -> tuple[int, int, int, int] | None:
    """argparse type: four integers separated by commas, or none."""
    if text.lower() == "none":
        return None
    found = tuple(int(each) for each in text.split(","))
    if len(found) != 4:
        raise argparse.ArgumentTypeError(f"{text} found, LEFT,TOP,RIGHT,BOTTOM or none expected")
    return found


def main(args: argparse.Namespace) -> dict[str, Any]:
    log = open_log()
    device = cli.resolve_device(args.device, args.gpu)
    path = require_weights(args.checkpoint, args.model_path)
    flags = {"layers": args.layers, "init_channels": args.init_channels, "arch": args.arch}
    trained = load_trained(path, **flags)
    faces = load_jaffe(args.data, crop=args.crop and tuple(args.crop), report=log.info)
    folds = leave_one_subject_out(faces.subjects) if args.mode == "finetune" else []
    seed_everything(args.seed)
    if args.resume is None:
        run = create_run_folder(args.model_path, args.save, "jaffe")
    else:
        run = Path(args.resume)
    log = open_log(run)
    log.info("%s", describe_machine(device))
    log.info("run folder %s; from %s, epoch %d", run, path, trained.epoch)
    about = {
        "script": "test_JAFFE.py",
        "protocol": args.protocol,
        "run": str(run),
        "seed": args.seed,
        "checkpoint": str(path),
        "mode": args.mode,
    }

    if args.mode == "evaluate":
        everything = faces.split(torch.arange(len(faces.labels)))
        with stop_on_signals(args.time_limit) as stop:
            scores = evaluate(
                network_predictor(trained.model.to(device)),
                everything.map(lambda tensor: tensor.to(device)),
                batch_size=args.batch_size,
                precision=autocast(device, args.amp),
                stop=stop,
            )
        figures = report_split("JAFFE", scores, CLASSES, run)
        summary = {**about, "figures": {"JAFFE": figures}}
        write_summary(summary, run)
        rows = [["as it is", figures["images"], figures["accuracy"]]]
        table = format_table(["JAFFE, top-1 accuracy in %", "images", ""], rows)
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
    figures = summarise_folds("JAFFE", done, faces, CLASSES, run)
    seconds = sum(result["seconds"] for result in done)
    summary = {**about, "epochs": args.epochs, "seconds": seconds, "figures": {"JAFFE": figures}}
    write_summary(summary, run)
    log_folds(log, "JAFFE", figures, run)
    return summary


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
