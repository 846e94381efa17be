"""The command line of a script: its flags, and at --resume those of the run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.arguments import RECIPES
from common.start import describe_start
from runtime.errors import UserError, reading
from runtime.logs import open_log
from utils import load_checkpoint

# Flags that may change at --resume; every other one defines the run.
_FREE_ON_RESUME = set("amp compile data device gpu model_path report_freq tensorboard".split())
# Flags of one start of a run.
_OF_ONE_START = {"resume", "resumed", "save", "time_limit", "longer_from"}
# Scripts whose finished folds fix the number of epochs.
_FOLDS = ("test_CK48.py", "test_JAFFE.py")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; with --resume, flags that define the run are the run's own.

    Raises UserError when the run cannot be resumed or a flag contradicts it.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if getattr(args, "resume", None) is not None:
        return _resume(args, flags_given(parser, argv), parser)
    if "recipe" in args:
        # Defaults, so that flags that are given override them.
        parser.set_defaults(**RECIPES[args.recipe])
        args = parser.parse_args(argv)
        if "size_epochs" in args:
            _check_training(args)
    if "script" in args:
        args.started = describe_start(args.script, argv)
    return args


def _resume(
    args: argparse.Namespace, given: dict[str, Any], parser: argparse.ArgumentParser
) -> argparse.Namespace:
    """`args` with the flags of the run that --resume names, but those `given` that may change.

    `args.resumed` is the content of its checkpoint.
    """
    folder = resolve_run(args.resume, args.model_path)
    path = folder / "checkpoint.pt"
    open_log(folder)  # first, as it locks the folder: another process may be writing the checkpoint
    with reading(path, "a checkpoint of the same script and version"):
        args.resumed = load_checkpoint(path, ("training", "search", "folds"))
        saved = dict(args.resumed["args"])
    if saved.get("script") != args.script:
        script = saved.get("script", "an older version of the scripts")
        raise UserError(f"--resume {args.resume}: a run of {script}, expected one of {args.script}")
    if "save" in given:
        raise UserError(f"--save {args.save}: not with --resume; a resumed run keeps its folder")
    if "device" in given or "gpu" in given:  # either replaces both
        given |= {"device": args.device, "gpu": args.gpu}
    args.started = args.longer_from = None
    for name in vars(args).keys() - _OF_ONE_START:
        value = saved.get(name, parser.get_default(name))
        if name not in given:
            setattr(args, name, value)
        elif name == "epochs" and args.script not in _FOLDS and value and value < args.epochs:
            args.longer_from = value
        elif given[name] != value and name not in _FREE_ON_RESUME:
            raise UserError(
                f"--{name} {given[name]}: contradicts {folder}, which was started with {value}"
            )
    args.resume = str(folder)
    return args


def flags_given(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """The values of the flags that stand on the command line itself, by name."""
    # argparse leaves existing attributes alone, so those that change were given.
    missing = object()
    names = vars(parser.parse_args(argv))
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, missing)))
    return {name: value for name, value in vars(args).items() if value is not missing}


def _check_training(args: argparse.Namespace) -> None:
    """Raise UserError for flags of training that exclude each other."""
    for name in ("warmup_epochs", "mix_off_epochs"):
        value = getattr(args, name) or 0
        if value >= args.epochs:
            raise UserError(f"--{name} {value}: expected fewer than --epochs {args.epochs}")
    if len(args.sizes) != len(args.size_epochs) or sum(args.size_epochs) not in (0, args.epochs):
        raise UserError(
            f"--size_epochs {','.join(map(str, args.size_epochs)) or 'none'}: expected a number "
            f"for each of the {len(args.sizes)} --sizes, {args.epochs} in all as --epochs says"
        )
    if args.nesterov and args.momentum == 0:
        raise UserError("--nesterov: needs momentum, found --momentum 0")


def resolve_run(name: str, model_path: str) -> Path:
    """The run folder that `name`, it or its checkpoint.pt, means: as given or inside `model_path`.

    Raises UserError where there is no checkpoint.pt.
    """
    given = Path(name).parent if Path(name).name == "checkpoint.pt" else Path(name)
    for folder in (given, Path(model_path) / given):
        if (folder / "checkpoint.pt").is_file():
            return folder
    raise UserError(
        f"--resume {name}: no checkpoint.pt in {name} or {Path(model_path) / name}; "
        "expected the folder of a run that finished an epoch or was interrupted"
    )
