"""Train the network of a genotype on FER2013 from scratch.

    python train_FER2013.py --arch  --batch_size 24 --learning_rate 0.025 --layers 12 \
        --auxiliary_weight 0.4

Writes a run folder below --model_path: `log.txt`, `metrics.csv` (a row an epoch), `weights.pt`
(every epoch), `best_val_weights.pt` (the best on PublicTest), `85_weights.pt` and `90_weights.pt`
(when the training accuracy first reaches 85 and 90 %), `checkpoint.pt` (what --resume goes on
from), and at the end, for the weights chosen on PublicTest, a report and a confusion matrix of
PublicTest and PrivateTest, `curves.png` and `summary.json`. With `--protocol paper` also
`best_test_weights.pt`, the best on PrivateTest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from data.augment import Augmentation, spread
from data.fer2013 import CLASSES, load_fer2013
from engine import (
    TrainState,
    autocast,
    best_epoch,
    evaluate,
    first_epoch_reaching,
    fit,
    network_predictor,
    stop_on_signals,
)
from genotypes import format_genotype, resolve_genotype
from model import build_network
from tools import cli
from tools.plots import draw_curves
from tools.report import format_table, report_split, write_summary
from utils import (
    create_run_folder,
    describe_machine,
    load_checkpoint,
    load_state,
    open_log,
    save_checkpoint,
    seed_everything,
    write_metrics,
)

# File names of the weights saved when the training accuracy first reaches so many percent.
MILESTONES = {85.0: "85_weights.pt", 90.0: "90_weights.pt"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            cli.common_parser(batch_size=64, batch_why="the published value", seed=0),
            cli.run_parser(label="train"),
            cli.sgd_parser(
                learning_rate=0.025,
                why="the published value, for batches of 24 to 64; it falls to 0 as a cosine",
                drop_path_prob=0.2,
                drop_path_why="the published value, reached linearly from 0 over the epochs",
            ),
        ],
    )
    # fmt: off
    add = parser.add_argument_group("the network").add_argument
    add("--arch", nargs="?", const="Auto_FERNet", default="Auto_FERNet", metavar="GENOTYPE",
        help="a name of genotypes.py, a literal Genotype(...), a genotype file or the run folder "
        "of a search (default, also without a value: Auto_FERNet, the paper's)")
    add("--epochs", type=cli.positive_int, default=600, metavar="N",
        help="epochs (default: 600, the published value)")
    add("--init_channels", type=cli.positive_int, default=36, metavar="C",
        help="channels of the first cell (default: 36, the published value)")
    add("--layers", type=cli.positive_int, default=12, metavar="L",
        help="cells (default: 12, the published value)")
    add("--auxiliary", action=argparse.BooleanOptionalAction, default=True,
        help="train with the auxiliary head (default: on, as published)")
    add("--auxiliary_weight", type=cli.non_negative, default=0.4, metavar="W",
        help="weight of the auxiliary loss (default: 0.4, the published value)")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    log = open_log()
    device = cli.resolve_device(args.device, args.gpu)
    precision = autocast(device, args.amp)
    genotype = resolve_genotype(args.arch) if args.resume is None else None
    splits = load_fer2013(args.data, report=log.info)
    splits = {name: split.map(lambda t: t.to(device)) for name, split in splits.items()}

    seed_everything(args.seed)
    if args.resume is None:
        run = create_run_folder(args.model_path, args.save, "train")
        state = TrainState()
        description = {
            "C": args.init_channels,
            "num_classes": len(CLASSES),
            "layers": args.layers,
            "auxiliary": args.auxiliary,
            "genotype": format_genotype(genotype),
        }
    else:
        run = Path(args.resume)
        resumed = load_checkpoint(run / "checkpoint.pt", ["training"])
        state = TrainState(**resumed["state"])
        description = resumed["model"]
    log = open_log(run)
    model = build_network(description).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        args.learning_rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
    )
    if args.resume is not None:
        load_state(model, resumed["state_dict"], run / "checkpoint.pt")
        optimizer.load_state_dict(resumed["optimizer"])
    parameters = sum(p.numel() for n, p in model.named_parameters() if "auxiliary" not in n)
    log.info("%s", describe_machine(device))
    log.info("run folder %s, %d parameters without the auxiliary head", run, parameters)
    log.info("%s", description["genotype"])

    # The best-on-PrivateTest weights are an oracle: kept where the published protocol wants them.
    choices = {"best_val_weights.pt": "PublicTest_accuracy"}
    if args.protocol == "paper":
        choices["best_test_weights.pt"] = "PrivateTest_accuracy"

    def save(state: TrainState) -> None:
        weights = {"model": description, "state_dict": model.state_dict(), "epoch": state.epoch,
                   "epochs": args.epochs, "drop_path_prob": args.drop_path_prob}  # fmt: skip
        history = state.history
        if state.step == 0:
            names = ["weights.pt"]
            names += [n for n, key in choices.items() if best_epoch(history, key) == state.epoch]
            names += [
                name
                for percent, name in MILESTONES.items()
                if first_epoch_reaching(history, "train_accuracy", percent) == state.epoch
            ]
            for name in names:
                save_checkpoint(run / name, "weights", {**weights, "metrics": history[-1]})
            write_metrics(history, run / "metrics.csv")
        # Last, so that whatever a killed run has not written is written again when it resumes.
        save_checkpoint(
            run / "checkpoint.pt",
            "training",
            {**weights, "optimizer": optimizer.state_dict(), "state": state.to_dict(),
             "args": vars(args)},
        )  # fmt: skip

    limit = args.limit_batches and args.limit_batches * args.batch_size
    evaluations = {name: spread(splits[name], limit) for name in ("PublicTest", "PrivateTest")}
    with stop_on_signals(args.time_limit) as stop:
        fit(
            model,
            optimizer,
            splits["Training"],
            evaluations,
            state=state,
            epochs=args.epochs,
            batch_size=args.batch_size,
            augmentation=Augmentation(cutout=args.cutout_length if args.cutout else 0),
            learning_rate=args.learning_rate,
            drop_path_at=lambda epoch: args.drop_path_prob * epoch / args.epochs,
            auxiliary_weight=args.auxiliary_weight,
            grad_clip=args.grad_clip,
            seed=args.seed,
            precision=precision,
            report_freq=args.report_freq,
            limit_batches=args.limit_batches,
            save=save,
            stop=stop,
        )
        chosen = load_checkpoint(run / "best_val_weights.pt", ["weights"])
        load_state(model, chosen["state_dict"], run / "best_val_weights.pt")
        scores = {
            name: evaluate(
                network_predictor(model),
                split,
                batch_size=args.batch_size,
                precision=precision,
                stop=stop,
                title=name,
            )
            for name, split in evaluations.items()
        }
    figures = {name: report_split(name, each, CLASSES, run) for name, each in scores.items()}
    draw_curves(state.history, run / "curves.png")
    oracle = best_epoch(state.history, "PrivateTest_accuracy")
    summary = {
        "script": "train_FER2013.py",
        "protocol": args.protocol,
        "run": str(run),
        "seed": args.seed,
        "parameters": parameters,
        "genotype": description["genotype"],
        "epochs": args.epochs,
        "seconds": sum(record["seconds"] for record in state.history),
        "chosen_epoch": chosen["epoch"],
        "figures": figures,
        "last_epoch": state.history[-1],
        "oracle": {
            "epoch": oracle,
            "PrivateTest_accuracy": state.history[oracle - 1]["PrivateTest_accuracy"],
        },
    }
    write_summary(summary, run)
    rows = [
        [f"chosen on PublicTest (epoch {chosen['epoch']})", *(s.accuracy for s in scores.values())],
        [f"last epoch ({args.epochs})", *(state.history[-1][f"{n}_accuracy"] for n in scores)],
        [f"oracle: best on PrivateTest (epoch {oracle})",
         *(state.history[oracle - 1][f"{n}_accuracy"] for n in scores)],
    ]  # fmt: skip
    log.info("\n%s\n\nreports and pictures in %s",
             format_table(["top-1 accuracy in %", *scores], rows), run)  # fmt: skip
    return summary


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
