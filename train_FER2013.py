"""Train the network of a genotype on FER2013 from scratch.

    python train_FER2013.py --arch  --batch_size 24 --learning_rate 0.025 --layers 12 \
        --auxiliary_weight 0.4

Writes a run folder below --model_path: `log.txt`, `metrics.csv` (one row per epoch), `weights.pt`
(last finished epoch), `best_val_weights.pt` (the best on PublicTest), `85_weights.pt` and
`90_weights.pt` (when the training accuracy first reaches 85 and 90 %), `checkpoint.pt` (which
--resume continues), and at the end, for the weights chosen on PublicTest, a report and a confusion
matrix of PublicTest and PrivateTest, `curves.png` and `summary.json`. With `--protocol paper` also
`best_test_weights.pt`, the best on PrivateTest.
"""

from __future__ import annotations

import argparse
import logging
import sys
from argparse import BooleanOptionalAction
from functools import partial
from typing import Any

import runtime.startup  # noqa: F401 (before torch, which takes seconds)

from common import arguments
from common.cli import run_script
from common.start import resolve_device, start_run
from common.training import evaluation_splits, report_training, save_training
from common.weights import load_teacher, require_classes, resume_network, training_inputs
from data.sets import load_set
from engine import DropPath, TrainState, fit
from genotypes import resolve_genotype
from model import Network
from runtime.logs import LOGGER_NAME, open_log

_log = logging.getLogger(LOGGER_NAME)


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("the network").add_argument
    add("--arch", nargs="?", const="Auto_FERNet", default="Auto_FERNet", metavar="GENOTYPE",
        help="a name of genotypes.py, a literal Genotype(...), a file with one, such as a log, "
        "FILE:NAME for one of several, or the run of a search; without a value the paper's")
    add("--init_channels", type=arguments.channels, default=36, metavar="C",
        help="channels of the first cell")
    add("--layers", type=arguments.cells, default=12, metavar="L", help="cells")
    add("--auxiliary", action=BooleanOptionalAction, default=True,
        help="train with the auxiliary head")
    # fmt: on
    arguments.add_data_arguments(parser, batch_size=64, seed=0)
    arguments.add_folder_arguments(parser)
    arguments.add_run_arguments(parser, "train_FER2013.py")
    arguments.add_sgd_arguments(parser, learning_rate=0.025, drop_path_prob=0.2)
    arguments.add_training_arguments(parser, epochs=600)
    arguments.add_teacher_arguments(parser)
    arguments.add_copies_argument(parser)
    arguments.add_tta_argument(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    open_log()
    device = resolve_device(args)
    genotype = resolve_genotype(args.arch, args.model_path) if args.resume is None else None
    teacher, taught_classes = load_teacher(args, device)
    data = load_set(args.data, args.seed, without_copies=args.drop_copies)
    data = data.to(device)
    if teacher is not None:
        require_classes(",".join(args.teacher), taught_classes, data.classes)

    run = start_run(args, device, "train", "training", training_inputs(data, args))
    if genotype is not None:
        model = Network(
            args.init_channels, len(data.classes), args.layers, args.auxiliary, genotype
        )
        drop_path = DropPath(0, args.epochs, args.drop_path_prob)
    else:
        model, drop_path = resume_network(run, data.classes, args)
    train = TrainState(model.to(device), args, drop_path, data.classes)
    if run.resumed is not None:
        train.load_state_dict(run.resumed, run.folder / "checkpoint.pt")
    _log.info("%d parameters without the auxiliary head", model.size)
    _log.info("%s", model.description["genotype"])

    evaluations = evaluation_splits(data.splits, args)
    save = partial(save_training, train, args, run)
    with run.interruptible(args.time_limit):
        fit(train, data.splits["Training"], evaluations, args, run, save=save, teacher=teacher)
        return report_training(train, evaluations, args, run, checkpoints=args.teacher)


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
