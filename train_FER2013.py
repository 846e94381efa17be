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

from common import arguments, cli, recipe, teacher
from common.checkpoints import resume_optimisation, resume_training
from common.training import saver, train_and_report
from data.fer2013 import CLASSES, load_fer2013
from engine import TrainState, autocast, rising
from genotypes import format_genotype, resolve_genotype
from model import build_network
from utils import (
    create_run_folder,
    describe_machine,
    open_log,
    seed_everything,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            arguments.common_parser(batch_size=64, batch_why="the published value", seed=0),
            arguments.folder_parser(label="train"),
            arguments.run_parser(script="train_FER2013.py"),
            arguments.sgd_parser(
                learning_rate=0.025,
                why="the published value, for batches of 24 to 64; it falls to 0 as a cosine",
                drop_path_prob=0.2,
                drop_path_why="the published value, reached linearly from 0 over the epochs",
            ),
            arguments.training_parser(epochs=600),
            recipe.recipe_parser(),
            teacher.teacher_parser(),
            arguments.tta_parser(),
        ],
    )
    # fmt: off
    add = parser.add_argument_group("the network").add_argument
    add("--arch", nargs="?", const="Auto_FERNet", default="Auto_FERNet", metavar="GENOTYPE",
        help="a name of genotypes.py, a literal Genotype(...), a genotype file or the run folder "
        "of a search (default: Auto_FERNet, the paper's, also where no value is given)")
    add("--init_channels", type=arguments.positive_int, default=36, metavar="C",
        help="channels of the first cell (default: 36, the published value)")
    add("--layers", type=arguments.positive_int, default=12, metavar="L",
        help="cells (default: 12, the published value)")
    add("--auxiliary", action=argparse.BooleanOptionalAction, default=True,
        help="train with the auxiliary head (default: on, as published)")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    log = open_log()
    device = cli.resolve_device(args.device, args.gpu)
    precision = autocast(device, args.amp)
    genotype = resolve_genotype(args.arch) if args.resume is None else None
    teaching = teacher.teaching(args, device)
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
        model = build_network(description)
    else:
        run = Path(args.resume)
        resumed, model, state = resume_training(run)
        description = resumed["model"]
    log = open_log(run)
    model = model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), **arguments.sgd_arguments(args))
    average = recipe.averaged(model, args.ema)
    if args.resume is not None:
        resume_optimisation(optimizer, average, resumed, run / "checkpoint.pt")
    log.info("%s", describe_machine(device))
    log.info("run folder %s, %d parameters without the auxiliary head", run, model.size)
    log.info("%s", description["genotype"])

    save = saver(
        run,
        model,
        optimizer,
        description=description,
        protocol=args.protocol,
        epochs=args.epochs,
        drop_path_prob=args.drop_path_prob,
        args=vars(args),
        average=average,
    )
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
        drop_path_at=lambda epoch: rising(epoch, args.epochs, args.drop_path_prob),
        about={
            "script": args.script,
            "protocol": args.protocol,
            "seed": args.seed,
            "checkpoints": args.teacher,
        },
        **recipe.fit_arguments(args, teaching=teaching),
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
