"""The flags that scripts share: their types, and a function for each group of flags.

`add_X_arguments(parser, name=default)` adds a group; the help of a flag shows its default.
"""

from __future__ import annotations

import argparse
import math
from argparse import BooleanOptionalAction
from collections.abc import Callable
from typing import Any, TypeVar

from recipe.views import TTA

# Defaults of flags by --recipe; learning rate, batch and epochs are each script's own. "strong" is
# the recipe of the best small network, which had a longer warm-up (docs/results.md).
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "strong": {
        "nesterov": True,
        "warmup_epochs": 1,
        "drop_path_prob": 0.0,
        "affine": 0.1,
        "ema": 0.999,
    },
    # Meant to end within an hour on two cores (docs/speed.md).
    "laptop": {
        "init_channels": 8,
        "layers": 5,
        "size": 24,
        "batch_size": 64,
        "batch_increase": 0,
        "limit_batches": 100,
        "learning_rate": 0.03,
        "arch_learning_rate": 6e-3,
        "arch_warmup_epochs": 5,
        "warmup_dec_epoch": 8,
        "decision_freq": 1,
        "epochs": 16,
    },
}

# By the --recipe of a search, how train_FER2013.py trains the network of its cells.
RETRAINING = {
    "paper": "",
    "laptop": "--init_channels 16 --layers 8 --recipe strong --learning_rate 0.1 --epochs 12 "
    "--sizes 32,44 --size_epochs 8,4",
}


def describe_recipe(name: str) -> str:
    """The flags of a recipe, as on a command line."""
    flags = " ".join(f"--{flag} {value}" for flag, value in RECIPES[name].items())
    return f"{name} is {flags.replace(' True', '')}"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Prints the default of a flag that has one; a help text may explain another by itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


def new_parser(description: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with defaults in its help, which begins with the first line of `description`."""
    first = (description or "").split("\n")[0]
    return argparse.ArgumentParser(prog=prog, description=first, formatter_class=HelpFormatter)


# The largest networks that flags and checkpoints may describe.
LIMITS = {"C": 1024, "layers": 50, "num_classes": 1024}
MAX_SIZE = 1024  # of training images, whose pixels are 48 a side
MAX_INT = 2**31 - 1  # with room for sums and products in 64 bits
FLOATS = (2.0**-126, 2.0**128 - 2.0**104)  # the smallest and largest normal float32

Number = TypeVar("Number", int, float)

# --- types


def _number(
    kind: type[Number], name: str, least: Number, most: Number, expected: str = ""
) -> Callable[[str], Number]:
    """The argparse type `name`: a number of `kind` from `least` to `most`."""

    def read(text: str) -> Number:
        value = kind(text)
        if not least <= value <= most:
            wanted = expected or f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} found, {wanted} expected")
        return value

    read.__name__ = name  # in what argparse says of a text that is no number
    return read


positive_int = _number(int, "positive_int", 1, MAX_INT)
count = _number(int, "count", 0, MAX_INT)
channels = _number(int, "channels", 1, LIMITS["C"])
cells = _number(int, "cells", 1, LIMITS["layers"])
seed_number = _number(int, "seed_number", 0, 2**63 - 1, "0 to 2**63 - 1")
fraction = _number(float, "fraction", 0.0, math.nextafter(1.0, 0.0), "a number in [0, 1)")
positive_float = _number(float, "positive_float", *FLOATS, "a number above 0 that fits a float32")
non_negative = _number(float, "non_negative", 0.0, FLOATS[1], "0, or more that fits a float32")


def names(text: str) -> list[str]:
    """argparse type: names separated by commas."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise argparse.ArgumentTypeError(f"{text!r} found, names separated by commas expected")
    return words


def counts(text: str) -> list[int]:
    """argparse type: integers of at least 1 separated by commas."""
    return [positive_int(word) for word in names(text)]


def sizes(text: str) -> list[int]:
    """argparse type: sides of training images in pixels, multiples of 4, separated by commas."""
    return [image_size(word) for word in names(text)]


def image_size(text: str) -> int:
    """argparse type: the side of training images in pixels, a multiple of 4."""
    value = positive_int(text)
    if value % 4 or value > MAX_SIZE:
        raise argparse.ArgumentTypeError(f"{text} found, multiples of 4 to {MAX_SIZE} expected")
    return value


def gpu_number(text: str) -> int:
    """argparse type: the number of one CUDA device."""
    if "," in text:
        raise argparse.ArgumentTypeError(
            f"{text} found, one number expected; for several devices start the script by torchrun "
            f"--standalone --nproc_per_node {len(names(text))} SCRIPT, without --gpu"
        )
    return int(text)


def true_or_false(text: str) -> bool:
    """argparse type: True or False, in any case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} found, True or False expected")
    return text.lower() == "true"


# --- groups of flags
# fmt: off


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    group = parser.add_argument_group("device")
    add_device_argument(group)
    group.add_argument("--gpu", type=gpu_number, metavar="ID",
        help="number of the CUDA device, short for --device cuda:ID")


def add_device_argument(group: argparse._ActionsContainer) -> None:
    """Where to compute, without its short form --gpu."""
    group.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps",
        help="where to compute; auto takes CUDA, then MPS, then the CPU")


def add_data_arguments(parser: argparse.ArgumentParser, *, batch_size: int, seed: int) -> None:
    """The data, the batches, the device and the seed: flags of every script."""
    add = parser.add_argument_group("data").add_argument
    add("--data", default="data/", metavar="PATH",
        help="the data set, a folder that holds it, or 'synthetic' (see docs/data.md)")
    add("--batch_size", type=positive_int, default=batch_size, metavar="N",
        help="images per step")
    add("--limit_batches", type=positive_int, metavar="N",
        help="at most N batches in any pass over a split, for a short run; figures are then of "
        "that part alone (default: no limit)")
    add("--amp", choices=["auto", "off", "bf16"], default="auto",
        help="precision of the forward pass; auto is bf16 on GPUs and CPUs that have units for it, "
        "fp32 elsewhere")
    add("--seed", type=seed_number, default=seed, metavar="N",
        help="seed of everything random")
    add_device_arguments(parser)


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """The run folder."""
    add = parser.add_argument_group("the run folder").add_argument
    add("--model_path", default="saved_models", metavar="FOLDER", help="where run folders lie")
    add("--save", metavar="LABEL",
        help="name of the run folder (default: a short name of the script, date and time)")
    add("--report_freq", type=positive_int, default=50, metavar="STEPS",
        help="training steps between lines of the log")


def add_run_arguments(parser: argparse.ArgumentParser, script: str) -> None:
    """Runs that can be interrupted and resumed; `script` is kept with the run."""
    parser.set_defaults(script=script)
    add = parser.add_argument_group("the run").add_argument
    add("--protocol", choices=["clean", "paper"], default="clean",
        help="clean trains and searches on training images only and chooses weights on "
        "PublicTest; paper does what the published figures were made with")
    add("--resume", metavar="RUN",
        help="continue this run: its folder or its checkpoint.pt; flags that define a run are then "
        "its own, except that a search or a training takes a larger --epochs")
    add("--time_limit", type=positive_float, metavar="MINUTES",
        help="save and end after this time, to be resumed (default: no limit)")
    add("--tensorboard", action=BooleanOptionalAction, default=False,
        help="write what TensorBoard shows into tensorboard/ of the run folder; needs the package "
        "tensorboard (requirements-tensorboard.txt)")


def add_sgd_arguments(
    parser: argparse.ArgumentParser,
    *,
    learning_rate: float,
    published: float | None = None,
) -> None:
    """SGD and regularisation.

    `published` is the learning rate of the published command, where the default is another.
    """
    command = "" if published is None else f"; the published command has {published}"
    add = parser.add_argument_group("optimization").add_argument
    add("--learning_rate", type=positive_float, default=learning_rate, metavar="RATE",
        help=f"highest learning rate of SGD, which falls as a cosine{command}")
    add("--momentum", type=fraction, default=0.9, metavar="M", help="momentum of SGD")
    add("--weight_decay", type=non_negative, default=3e-4, metavar="W", help="weight decay of SGD")
    add("--grad_clip", type=positive_float, default=5.0, metavar="NORM",
        help="largest norm of the gradient")
    add("--cutout", action="store_true", help="zero a random square of each training image")
    add("--cutout_length", type=positive_int, default=16, metavar="PIXELS",
        help="side of that square")


def add_training_arguments(
    parser: argparse.ArgumentParser, *, epochs: int, drop_path_prob: float | None = None
) -> None:
    """Training the network of a genotype: the published flags, and those that improve on it.

    `drop_path_prob` None means that of the checkpoint.
    """
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive_int, default=epochs, metavar="N", help="epochs")
    add("--auxiliary_weight", type=non_negative, default=0.4, metavar="W",
        help="weight of the auxiliary loss")
    add("--drop_path_prob", type=fraction, default=drop_path_prob, metavar="P",
        help="highest drop-path probability, reached linearly from 0 over the epochs"
        + (" (default: that of the checkpoint, else 0.2, continued from its epoch)"
           if drop_path_prob is None else ""))
    add("--nesterov", action=BooleanOptionalAction, default=False, help="Nesterov momentum")
    add("--warmup_epochs", type=count, default=0, metavar="N",
        help="epochs in which the learning rate first rises, from a 25th; fewer than --epochs")
    add("--sizes", type=sizes, default=[], metavar="S,T,...",
        help="resize the 44x44 crops to S pixels per side, then T, each for its --size_epochs; "
        "multiples of 4, at least 32 with the auxiliary head (default: 44 throughout)")
    add("--size_epochs", type=counts, default=[], metavar="N,M,...",
        help="epochs at each of --sizes, --epochs in all")
    add("--compile", action=BooleanOptionalAction, default=False,
        help="compile the network by torch.compile, which takes minutes at the start; on CUDA its "
        "steps run as CUDA graphs (not measured on a GPU)")

    add = parser.add_argument_group("the recipe").add_argument
    add("--recipe", choices=["paper", "strong"], default="paper",
        help=f"other defaults; {describe_recipe('strong')}")
    add("--label_smoothing", type=fraction, default=0.0, metavar="E",
        help="share of each label that is spread over all classes")
    add("--affine", type=fraction, default=0.0, metavar="A",
        help="shift training images by up to A of their side, scale by 1-A to 1+A, rotate by up to "
        "50 A degrees")
    add("--erasing", type=fraction, default=0.0, metavar="P",
        help="probability of erasing a random rectangle of a training image")
    add("--mixup", type=non_negative, default=0.0, metavar="ALPHA",
        help="blend each training image with another by a share drawn from Beta(ALPHA, ALPHA)")
    add("--cutmix", type=non_negative, default=0.0, metavar="ALPHA",
        help="paste a rectangle of another training image into each; with --mixup a coin decides "
        "for each batch")
    add("--mix_off_epochs", type=count, metavar="N",
        help="last epochs without --mixup and --cutmix, fewer than --epochs; labels are changed "
        "only in epochs without (default: a tenth of --epochs)")
    add("--ema", type=fraction, default=0.0, metavar="DECAY",
        help="evaluate and save an exponential moving average of the weights; the decay after n "
        "steps is at most (1+n)/(10+n)")


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """Distillation."""
    add = parser.add_argument_group("the teacher").add_argument
    add("--teacher", type=names, default=[], metavar="X,Y,...",
        help="checkpoints whose mean logits the network learns to give, named as for ensemble.py")
    add("--teacher_weight", type=fraction, default=0.5, metavar="W",
        help="weight of the teacher in the loss, 1 - W being that of the labels")
    add("--temperature", type=positive_float, default=2.0, metavar="T",
        help="temperature of the softmax for --teacher")


def add_copies_argument(parser: argparse.ArgumentParser) -> None:
    """What is done with the test images that FER2013's Training holds."""
    parser.add_argument("--drop_copies", action="store_true",
        help="train without the images that are in a test split too, pixel for pixel")


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The trained network that a script starts from."""
    add = parser.add_argument_group("the trained network").add_argument
    add("--checkpoint", metavar="X",
        help="weights: a file, as given, with .pt added or inside --model_path; a run folder; or "
        "the name of weights in checkpoints/ (required, unless --resume)")
    add_network_arguments(parser)
    add_layers_argument(parser)


def add_layers_argument(parser: argparse.ArgumentParser) -> None:
    """The depth of a bare state dict, where there is one network."""
    parser.add_argument("--layers", type=cells, metavar="L", help="cells of a bare state dict")


def add_reset_argument(parser: argparse.ArgumentParser) -> None:
    """Fine-tuning on other classes."""
    add = parser.add_argument_group("the classes").add_argument
    add("--reset_classifier", action=BooleanOptionalAction, default=False,
        help="replace the last layer by a new one for the classes of the data")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """What describes a bare state dict; other checkpoints describe themselves."""
    add = parser.add_argument_group("a bare state dict (default: the paper's cells)").add_argument
    add("--arch", nargs="?", const="Auto_FERNet", metavar="GENOTYPE",
        help="its genotype: a name of genotypes.py, a literal Genotype(...), a file with one, such "
        "as a log, FILE:NAME for one of several, or the run of a search")
    add("--init_channels", type=channels, metavar="C", help="channels of its first cell")


def add_tta_argument(parser: argparse.ArgumentParser) -> None:
    """Test-time augmentation."""
    add = parser.add_argument_group("figures").add_argument
    add("--tta", choices=TTA, default="none",
        help="views of an image whose logits are averaged for the reported figures; training "
        "epochs are scored, and weights chosen, in a single view")
