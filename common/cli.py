"""How the scripts start and end: devices, resuming, other scripts, errors and exit statuses."""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from common import ranks
from common.checkpoints import parts_of
from common.recipe import RECIPES
from utils import (
    Interrupted,
    UserError,
    WriteError,
    is_out_of_memory,
    load_checkpoint,
    stop_on_signals,
)

# What a resumed run may be given anew; every other flag is part of what the run is.
_FREE_ON_RESUME = {"amp", "compile", "data", "device", "gpu", "model_path", "report_freq"}
# What each start of a run has for itself.
_OF_ONE_START = {"resume", "save", "time_limit"}
_WRITE_ADVICE = {
    errno.ENOSPC: "free some room on the disk",
    errno.EDQUOT: "free some room in your quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "make the folder writable or name another by --model_path",
    errno.EACCES: "make the folder writable or name another by --model_path",
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The kinds of flags that take no value.
_SWITCHES = (argparse.BooleanOptionalAction, argparse._StoreTrueAction)
_EXIT_STATUS = {"SIGINT": 130, "SIGTERM": 143, "time limit": 0}


def resolve_device(device: str, gpu: int | None) -> torch.device:
    """The device that --device and --gpu ask for; UserError when it is not there.

    Under torchrun "auto" and "cuda" are a GPU for each process of the machine.
    """
    if gpu is not None:
        if device not in ("auto", "cuda", f"cuda:{gpu}"):
            raise UserError(f"--gpu {gpu}: contradicts --device {device}; give one of them")
        flag, device = f"--gpu {gpu}", f"cuda:{gpu}"
    else:
        flag = f"--device {device}"
    if device == "auto":
        if torch.cuda.is_available():
            device = "cuda"
        elif torch.backends.mps.is_available() and not ranks.several():
            device = "mps"
        else:
            device = "cpu"
    if device == "cuda" and ranks.several():
        device = f"cuda:{ranks.local('LOCAL_RANK')}"
    elif ranks.several() and device != "cpu" and ranks.local("LOCAL_WORLD_SIZE") > 1:
        raise UserError(
            f"{flag}: one device for {ranks.local('LOCAL_WORLD_SIZE')} processes; expected auto, "
            "which gives each a GPU of its own, or cpu"
        )
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UserError(f"{flag}: expected auto, cpu, cuda, cuda:N or mps") from None
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if resolved.type not in found or (resolved.index or 0) >= found[resolved.type]:
        raise UserError(
            f"{flag}: no such device here ({torch.cuda.device_count()} CUDA devices found); "
            "expected auto, cpu, or one that is there"
        )
    if resolved.type == "cuda" and ranks.several():
        torch.cuda.set_device(resolved)
    return resolved


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; with --resume, every flag that makes the run is the run's own.

    Raises UserError when the run cannot be resumed or a flag contradicts what it was started with.
    """
    args, given = parser.parse_args(argv), flags_given(parser, argv)
    if getattr(args, "resume", None) is None:
        if "recipe" in args:
            # Defaults, so that flags that are given have the last word.
            parser.set_defaults(**RECIPES[args.recipe])
            args = parser.parse_args(argv)
        _check_training(args)
        if "script" in args:
            args.started = describe_start(args.script, sys.argv[1:] if argv is None else argv)
        return args
    folder = resolve_run(args.resume, args.model_path)
    path = folder / "checkpoint.pt"
    found = load_checkpoint(path, ("training", "search", "folds"))
    with parts_of(path):
        saved = dict(found["args"])
    if saved.get("script") != args.script:
        found = saved.get("script", "an older version of the scripts")
        raise UserError(f"--resume {args.resume}: a run of {found}, expected one of {args.script}")
    if "save" in given:
        raise UserError(f"--save {args.save}: not with --resume; a resumed run keeps its folder")
    with parts_of(path):
        _check_flags(parser, saved)
    # Either of the two flags of the device replaces both.
    moved = "device" in given or "gpu" in given
    args.started = None
    for name in vars(args).keys() - _OF_ONE_START:
        # What a flag now turns on was off before there was the flag.
        value = saved.get(name, parser.get_default(name))
        if name not in given:
            if not (moved and name in ("device", "gpu")):
                setattr(args, name, value)
        elif given[name] != value and name not in _FREE_ON_RESUME:
            raise UserError(
                f"--{name} {given[name]}: contradicts {folder}, which was started with {value}"
            )
    args.resume = str(folder)
    return args


def describe_commit() -> str | None:
    """The commit of this code, ending in -dirty where files differ from it; None outside git."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # No lock of git's own: looking must not stand in anybody's way.
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        found = subprocess.run(
            words, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def describe_start(script: str, argv: Sequence[str]) -> dict[str, str | None]:
    """The command, the commit of the code and the machine of a run: what its weights hang on."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "command": shlex.join(["python", script, *argv]),
        "commit": describe_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores{gpu}, "
        f"python {platform.python_version()}, torch {torch.__version__}{ranks.note()}",
    }


def _check_flags(parser: argparse.ArgumentParser, saved: Mapping[str, Any]) -> None:
    """Raise ValueError or ArgumentTypeError where no command line gives a flag its saved value."""
    for action in parser._actions:
        value = saved.get(action.dest, action.default)
        if value == action.default:
            continue
        if isinstance(action, _SWITCHES):
            sound = isinstance(value, bool)
        elif isinstance(value, int | float | str):
            read = action.type(str(value)) if action.type else value
            sound = read == value and type(read) is type(value)
            sound &= action.choices is None or value in action.choices
        else:
            sound = value is None or isinstance(value, tuple | list)
        if not sound:
            raise ValueError(f"--{action.dest} {value!r}")


def flags_given(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """The values of the flags that stand on the command line itself, by name."""
    # argparse leaves attributes alone that are there already, so those that change were given.
    missing = object()
    names = vars(parser.parse_args(argv))
    found = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, missing)))
    return {name: value for name, value in vars(found).items() if value is not missing}


def _check_training(args: argparse.Namespace) -> None:
    """Raise UserError for flags of training that cannot go together."""
    if "warmup_epochs" not in args:
        return
    if args.warmup_epochs >= args.epochs:
        raise UserError(
            f"--warmup_epochs {args.warmup_epochs}: expected fewer than --epochs {args.epochs}"
        )
    if (args.mix_off_epochs or 0) >= args.epochs:
        raise UserError(
            f"--mix_off_epochs {args.mix_off_epochs}: expected fewer than --epochs {args.epochs}"
        )
    if len(args.sizes) != len(args.size_epochs) or sum(args.size_epochs) not in (0, args.epochs):
        raise UserError(
            f"--size_epochs {','.join(map(str, args.size_epochs)) or 'none'}: expected a number "
            f"for each of the {len(args.sizes)} --sizes, {args.epochs} in all as --epochs says"
        )
    if getattr(args, "auxiliary", True) and any(side < 32 for side in args.sizes):
        raise UserError(
            f"--sizes {','.join(map(str, args.sizes))}: the auxiliary head needs 32 pixels; "
            "expected larger sizes" + (", or --no-auxiliary" if "auxiliary" in args else "")
        )
    if args.nesterov and args.momentum == 0:
        raise UserError("--nesterov: needs momentum, found --momentum 0")


def run_script(words: Sequence[str]) -> int:
    """Run `python WORDS` and return its status; a signal lets it save first.

    Raises Interrupted when this process was told to stop.
    """
    with stop_on_signals() as stop:
        process = subprocess.Popen([sys.executable, *words])
        told = False
        while process.poll() is None:
            # A terminal sends SIGINT to both; SIGTERM comes to this process alone.
            if stop.reason == "SIGTERM" and not told:
                process.terminate()
                told = True
            time.sleep(0.05)
        if stop.reason:
            raise Interrupted(stop)
    return process.returncode


def make_folder(flag: str, name: str) -> Path:
    """The folder that `flag` names, made where it is missing; UserError where that fails."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {folder}: {error.strerror}, expected a folder") from error
    return folder


def resolve_run(name: str, model_path: str) -> Path:
    """The run folder called `name`, as given or inside `model_path`; UserError without one."""
    for folder in (Path(name), Path(model_path) / name):
        if (folder / "checkpoint.pt").is_file():
            return folder
    raise UserError(
        f"--resume {name}: no checkpoint.pt in {name} or {Path(model_path) / name}; "
        "expected the folder of a run that finished an epoch or was interrupted"
    )


def run(
    main: Callable[[argparse.Namespace], dict[str, Any]],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a script: exit status 0, 2 for an error of the user's, 130 or 143 when interrupted.

    Under torchrun it is the same for each process, and what there is to say is said by one.
    """
    keep_freed_memory()
    try:
        with ranks.group() as speaks:
            status, line = _run(main, parser, argv)
            if line is not None and speaks():
                print(f"{parser.prog}: {line}", file=sys.stderr)
            return status
    except ranks.PeerLost as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


def _run(
    main: Callable[[argparse.Namespace], dict[str, Any]],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
) -> tuple[int, str | None]:
    """The exit status of a script, and the last line that it has to say, if any."""
    try:
        with _said_once():
            args = parse(parser, argv)
        if ranks.world_size() > 1 and "save" not in args:
            raise UserError("torchrun: this program is of one process; start it with python")
        main(args)
        sys.stdout.flush()
    except UserError as error:
        return 2, f"error: {error}{_advice(error)}"
    except ranks.PeerLost as error:
        return 2, f"error: {error}; what was saved before is kept: go on with --resume"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = UserError(str(error).strip().split("\n")[0][:200] or type(error).__name__)
        return 2, (
            f"error: out of memory ({reason}); start again with a lower "
            "--batch_size, or go on with --resume where there is more memory"
        )
    except Interrupted as interrupted:
        end = "saved" if interrupted.resumable else "nothing saved"
        # Rank 0 alone knows when all is saved.
        line = f"stopped ({interrupted.reason}); {end}" if ranks.rank() == 0 else None
        return _EXIT_STATUS[interrupted.reason], line
    except KeyboardInterrupt:
        return _EXIT_STATUS["SIGINT"], "interrupted; what was saved before is kept"
    except BrokenPipeError:
        # The reader of our output went away; nothing is left to tell, and nobody to tell it to.
        _mute()
    except OSError as error:
        # Of all files but the one that our output goes to it would be a WriteError.
        if error.errno not in _FULL:
            raise
        _mute()
        return 2, (
            f"error: the output cannot be written ({error.strerror}); "
            f"{_WRITE_ADVICE[error.errno]}: files that were written before are kept"
        )
    return 0, None


@contextmanager
def _said_once() -> Iterator[None]:
    """What argparse prints, usage or help, rank 0 alone prints."""
    if ranks.rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _mute() -> None:
    """What is printed, and still held back, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _advice(error: UserError) -> str:
    """What to do about a file that could not be written."""
    if not isinstance(error, WriteError):
        return ""
    number = getattr(error.__cause__, "errno", None)
    if number == errno.ENOENT:
        return "; was its folder removed? Bring it back and go on with --resume, or start again"
    todo = _WRITE_ADVICE.get(number, "see to the folder")
    return f"; {todo}, then go on with --resume, or start again where nothing was saved before"


def keep_freed_memory() -> None:
    """Tell glibc to reuse what a step frees: fetching it anew costs a CPU run 5 to 10 % of time."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_MAX, M_TRIM_, M_TOP_PAD
        libc.mallopt(option, value)
