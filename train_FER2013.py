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
import sys
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from typing import Any

from runtime.startup import prepare

prepare()  # before torch is imported

from common import arguments
from common.cli import run_script
from common.start import check_inputs, start_run
from common.training import resume_training, run_training
from common.weights import load_teacher
from data.sets import load_set
from engine import TrainState
from genotypes import resolve_genotype
from model import Network
from recipe.schedules import DropPath
from runtime.run import Run


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
    arguments.add_sgd_arguments(parser, learning_rate=0.025)
    arguments.add_training_arguments(parser, epochs=600, drop_path_prob=0.2)
    arguments.add_teacher_arguments(parser)
    arguments.add_copies_argument(parser)
    arguments.add_tta_argument(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    run = start_run(args, "train")
    data = load_set(args.data, without_copies=args.drop_copies)
    data = data.to(run.device)
    teacher = load_teacher(args, data.classes, run.device)
    check_inputs(run, args, data)
    begin = resume_training if run.resumed else new_training
    train = begin(run, data.classes, args)
    return run_training(train, data, teacher, args, run, checkpoints=args.teacher)


def new_training(run: Run, classes: Sequence[str], args: argparse.Namespace) -> TrainState:
    """The training of a network that --arch, --init_channels, --layers and --auxiliary describe."""
    genotype = resolve_genotype(args.arch, args.model_path)
    model = Network(args.init_channels, len(classes), args.layers, args.auxiliary, genotype)
    drop_path = DropPath(0, args.epochs, args.drop_path_prob)
    return TrainState(model.to(run.device), args, drop_path, classes)


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
