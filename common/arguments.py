"""The flags that scripts share: their types, parent parsers, and what they become."""

from __future__ import annotations

import argparse
from typing import Any

from data.augment import Augmentation
from data.views import TTA


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} found, at least 1 expected")
    return value


def count(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} found, at least 0 expected")
    return value


def fraction(text: str) -> float:
    """argparse type: a number in [0, 1)."""
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} found, a number in [0, 1) expected")
    return value


def _seed(text: str) -> int:
    """argparse type: an integer of at least 0 that fits 63 bits."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} found, 0 to 2**63 - 1 expected")
    return value


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} found, a number above 0 expected")
    return value


def non_negative(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} found, a number of at least 0 expected")
    return value


def names(text: str) -> list[str]:
    """argparse type: names separated by commas."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} found, names separated by commas expected")
    return found


def sides(text: str) -> list[int]:
    """argparse type: sides of training images in pixels, multiples of 4, separated by commas."""
    found = [positive_int(word) for word in names(text)]
    if any(side % 4 for side in found):
        raise argparse.ArgumentTypeError(f"{text} found, multiples of 4 expected")
    return found


def counts(text: str) -> list[int]:
    """argparse type: integers of at least 1 separated by commas."""
    return [positive_int(word) for word in names(text)]


def box(text: str) -> tuple[int, int, int, int] | None:
    """argparse type: four integers separated by commas, or none."""
    if text.lower() == "none":
        return None
    try:
        left, top, right, bottom = map(int, text.split(","))
    except ValueError:
        expected = "LEFT,TOP,RIGHT,BOTTOM in whole pixels or none expected"
        raise argparse.ArgumentTypeError(f"{text} found, {expected}") from None
    return left, top, right, bottom


def add_device(group: argparse._ArgumentGroup) -> None:
    """Add the flags of where to compute."""
    add = group.add_argument
    add(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="where to compute (default: auto, which takes CUDA, then MPS, then the CPU)",
    )
    add(
        "--gpu",
        type=int,
        metavar="ID",
        help="number of the CUDA device, short for --device cuda:ID (default: --device decides)",
    )


def common_parser(
    *,
    batch_size: int,
    batch_why: str,
    seed: int,
    data: str = "FER2013 as a CSV, folder or archive, a folder that holds one",
) -> argparse.ArgumentParser:
    """The flags of every script, as a parent parser; `data` says what --data may name."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("data and device")
    add = group.add_argument
    add(
        "--data",
        default="data/",
        metavar="PATH",
        help=f"{data}, or 'synthetic' (default: data/, where git ignores it)",
    )
    add(
        "--batch_size",
        type=positive_int,
        default=batch_size,
        metavar="N",
        help=f"images a step (default: {batch_size}, {batch_why})",
    )
    add(
        "--limit_batches",
        type=positive_int,
        metavar="N",
        help="at most N batches in any pass over a split, for a short try; figures are then of "
        "that part alone (default: no limit, as figures are of whole splits)",
    )
    add_device(group)
    add(
        "--amp",
        choices=["auto", "off", "bf16"],
        default="auto",
        help="precision of the forward pass (default: auto, bf16 on CUDA that has it and fp32 "
        "elsewhere, as CPUs mostly gain nothing)",
    )
    add(
        "--seed",
        type=_seed,
        default=seed,
        metavar="N",
        help=f"seed of everything random (default: {seed}, the published one)",
    )
    return parser


def true_or_false(text: str) -> bool:
    """argparse type: True or False, as written, in any case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} found, True or False expected")
    return text.lower() == "true"


def tta_parser() -> argparse.ArgumentParser:
    """The flag of scripts that report accuracies, as a parent parser."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument_group("the figures").add_argument(
        "--tta",
        choices=TTA,
        default="none",
        help="views of an image whose logits are averaged for the figures reported at the end: "
        "the image, with its mirror image, or ten crops of 44x44; epochs of a training are scored, "
        "and weights chosen, in a single view (default: none, as published)",
    )
    return parser


def folder_parser(*, label: str) -> argparse.ArgumentParser:
    """The flags of the run folder, as a parent parser."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("the run folder").add_argument
    add(
        "--model_path",
        default="saved_models",
        metavar="FOLDER",
        help="where run folders lie (default: saved_models, which git ignores)",
    )
    add(
        "--save",
        metavar="LABEL",
        help=f"name of the run folder (default: {label}-DATE-TIME, so that none is overwritten)",
    )
    add(
        "--report_freq",
        type=positive_int,
        default=50,
        metavar="STEPS",
        help="training steps between lines of the log (default: 50, seconds on a GPU)",
    )
    return parser


def run_parser(*, script: str) -> argparse.ArgumentParser:
    """The flags of runs that can be interrupted and resumed, as a parent parser.

    `script` is kept with the run, which no other script may resume.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.set_defaults(script=script)
    add = parser.add_argument_group("the run").add_argument
    add(
        "--protocol",
        choices=["clean", "paper"],
        default="clean",
        help="clean keeps test images out of training, search and every choice; paper does what "
        "the published figures were made with (default: clean, as its figures can be trusted)",
    )
    add(
        "--resume",
        metavar="RUN",
        help="go on with this run folder from where it was saved; other flags are then the run's "
        "own (default: a new run)",
    )
    add(
        "--time_limit",
        type=positive_float,
        metavar="MINUTES",
        help="save and end by itself after so long, to be resumed (default: no limit)",
    )
    return parser


def sgd_parser(
    *, learning_rate: float, why: str, drop_path_prob: float | None, drop_path_why: str
) -> argparse.ArgumentParser:
    """The flags of SGD and of regularisation, as a parent parser.

    `drop_path_prob` None leaves it to the checkpoint, as `drop_path_why` then says.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("optimisation").add_argument
    add(
        "--learning_rate",
        type=positive_float,
        default=learning_rate,
        metavar="RATE",
        help=f"first learning rate of SGD (default: {learning_rate}, {why})",
    )
    add(
        "--momentum",
        type=fraction,
        default=0.9,
        metavar="M",
        help="momentum of SGD (default: 0.9, the published value)",
    )
    add(
        "--weight_decay",
        type=non_negative,
        default=3e-4,
        metavar="W",
        help="weight decay of SGD (default: 3e-4, the published value)",
    )
    add(
        "--grad_clip",
        type=positive_float,
        default=5.0,
        metavar="NORM",
        help="largest norm of the gradient (default: 5, the published value)",
    )
    add(
        "--drop_path_prob",
        type=fraction,
        default=drop_path_prob,
        metavar="P",
        help="drop-path probability (default: "
        + ("" if drop_path_prob is None else f"{drop_path_prob}, ")
        + f"{drop_path_why})",
    )
    add(
        "--cutout",
        action="store_true",
        help="zero a random square of each training image (default: off, as published)",
    )
    add(
        "--cutout_length",
        type=positive_int,
        default=16,
        metavar="PIXELS",
        help="side of that square (default: 16, the published value)",
    )
    return parser


def training_parser(*, epochs: int) -> argparse.ArgumentParser:
    """The flags of training the network of a genotype, as a parent parser."""
    parser = argparse.ArgumentParser(add_help=False)
    # fmt: off
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive_int, default=epochs, metavar="N",
        help=f"epochs (default: {epochs}, the published value)")
    add("--auxiliary_weight", type=non_negative, default=0.4, metavar="W",
        help="weight of the auxiliary loss (default: 0.4, the published value)")
    add("--nesterov", action=argparse.BooleanOptionalAction, default=False,
        help="Nesterov momentum (default: off, as published)")
    add("--warmup_epochs", type=count, default=0, metavar="N",
        help="epochs in which the learning rate first rises, from a 25th; fewer than --epochs "
        "(default: 0, as published)")
    add("--sizes", type=sides, default=[], metavar="S,T,...",
        help="train at rising sizes: the 44x44 crops are resized to S pixels a side, then T, each "
        "for its --size_epochs; multiples of 4, of at least 32 with the auxiliary head "
        "(default: the crops as they are, as published)")
    add("--size_epochs", type=counts, default=[], metavar="N,M,...",
        help="epochs at each of --sizes, --epochs in all (default: none, as without --sizes)")
    add("--compile", action=argparse.BooleanOptionalAction, default=False,
        help="compile the network by torch.compile: a minute at the start, then faster steps "
        "(default: off, as a short run does not earn that minute back)")
    # fmt: on
    return parser


def sgd_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What torch.optim.SGD takes from the flags of `sgd_parser` and `training_parser`."""
    return {
        "lr": args.learning_rate,
        "momentum": args.momentum,
        "weight_decay": args.weight_decay,
        "nesterov": args.nesterov,
    }


def fit_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What `engine.fit` takes from the flags as they are."""
    return {
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "warmup_epochs": args.warmup_epochs,
        "auxiliary_weight": args.auxiliary_weight,
        "grad_clip": args.grad_clip,
        "seed": args.seed,
        "report_freq": args.report_freq,
        "limit_batches": args.limit_batches,
        "compile_forward": args.compile,
    }


def augmentation(args: argparse.Namespace, *, jitter: float = 0.0) -> Augmentation:
    """The augmentation of training images; `jitter` is the script's own."""
    return Augmentation(jitter=jitter, cutout=args.cutout_length if args.cutout else 0)
