"""How scripts start and end: the command line, the device, the run, errors and exit statuses."""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from common.startup import WAITING

import torch

from common.arguments import RECIPES
from engine import Run, autocast
from utils import (
    LOGGER_NAME,
    Interrupted,
    PeerLost,
    UserError,
    WriteError,
    create_run_folder,
    describe_machine,
    describe_processes,
    from_rank_zero,
    gather,
    is_distributed,
    is_out_of_memory,
    load_checkpoint,
    open_log,
    process_group,
    rank,
    reading,
    require_unused,
    seed_everything,
    stop_on_signals,
    world_size,
)

# Flags that may change at --resume; every other one defines the run.
_FREE_ON_RESUME = {"amp", "compile", "data", "device", "gpu", "model_path", "report_freq"}
# Scripts whose finished folds fix the number of epochs.
_FOLDS = ("test_CK48.py", "test_JAFFE.py")
# Flags of one start of a run.
_OF_ONE_START = {"resume", "save", "time_limit", "longer_from"}
# What may differ between the machines of a run.
_OF_ONE_MACHINE = {"data", "device", "gpu", "model_path", "started"}
_WRITE_ADVICE = {
    errno.ENOSPC: "free some room on the disk",
    errno.EDQUOT: "free some room in your quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "make the folder writable or name another by --model_path",
    errno.EACCES: "make the folder writable or name another by --model_path",
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_EXIT_STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "time limit": 0}

Main = Callable[[argparse.Namespace], dict[str, Any]]


# --- the run of a script


def start_run(
    args: argparse.Namespace,
    device: torch.device,
    label: str,
    kind: str = "",
    inputs: Mapping[str, str] | None = None,
) -> Run:
    """The run of a script: seeds, run folder and log; at --resume those of before.

    `label` begins the name of a new folder without --save; `kind` is that of the checkpoint which
    --resume reads. `inputs` are digests of what the flags name: data, teachers, a checkpoint.
    Raises UserError where a resumed run began with others.
    """
    seed_everything(args.seed)
    resumed = None
    if getattr(args, "resume", None) is None:
        folder = create_run_folder(args.model_path, args.save, label)
        log = open_log(folder)
        # Again, as another process may have run in it before this one locked it.
        from_rank_zero(lambda: require_unused(folder, args.save))
    else:
        folder = Path(args.resume)
        log = open_log(folder)
        resumed = load_checkpoint(folder / "checkpoint.pt", [kind])
    log.info("%s", describe_machine(device))
    if WAITING:
        log.info("%s", WAITING)
    log.info("run folder %s", folder)
    if getattr(args, "longer_from", None):
        log.info(
            "--epochs %d instead of %d: goes on with the schedules of %d epochs",
            args.epochs,
            args.longer_from,
            args.epochs,
        )
    # Runs of older versions recorded none.
    began = {**(inputs or {}), **(resumed or {}).get("inputs", {})}
    for flag, found in (inputs or {}).items():
        if began[flag] != found:
            given = ",".join(getattr(args, flag)) if flag == "teacher" else getattr(args, flag)
            raise UserError(
                f"--{flag} {given}: no longer what {folder} began with, expected the same"
            )
    return Run(folder, device, autocast(device, args.amp), resumed=resumed, inputs=began)


def resolve_device(args: argparse.Namespace) -> torch.device:
    """The device that --device and --gpu ask for; UserError when it does not exist.

    Under torchrun "auto" and "cuda" are one GPU for each process of the machine.
    """
    device = args.device
    if args.gpu is not None:
        if device not in ("auto", "cuda", f"cuda:{args.gpu}"):
            raise UserError(f"--gpu {args.gpu}: contradicts --device {device}; give one of them")
        flag, device = f"--gpu {args.gpu}", f"cuda:{args.gpu}"
    else:
        flag = f"--device {device}"
    if device == "auto":
        if torch.cuda.is_available():
            device = "cuda"
        elif torch.backends.mps.is_available() and not is_distributed():
            device = "mps"
        else:
            device = "cpu"
    if device == "cuda" and is_distributed():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    elif is_distributed() and device != "cpu" and int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        raise UserError(
            f"{flag}: one device for {os.environ['LOCAL_WORLD_SIZE']} processes; expected auto, "
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
            "expected auto, cpu, or an existing one"
        )
    if resolved.type == "cuda" and is_distributed():
        torch.cuda.set_device(resolved)
    return resolved


# --- the command line


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; with --resume, flags that define the run are the run's own.

    Raises UserError when the run cannot be resumed or a flag contradicts it.
    """
    args, given = parser.parse_args(argv), flags_given(parser, argv)
    if getattr(args, "resume", None) is None:
        if "recipe" in args:
            # Defaults, so that flags that are given override them.
            parser.set_defaults(**RECIPES[args.recipe])
            args = parser.parse_args(argv)
            if "size_epochs" in args:
                _check_training(args)
        if "script" in args:
            args.started = describe_start(args.script, sys.argv[1:] if argv is None else argv)
        return args
    folder = resolve_run(args.resume, args.model_path)
    path = folder / "checkpoint.pt"
    found = load_checkpoint(path, ("training", "search", "folds"))
    with reading(path, "a checkpoint of the same script and version"):
        saved = _saved_flags(parser, found["args"])
        script = found["args"].get("script", "an older version of the scripts")
    if script != args.script:
        raise UserError(f"--resume {args.resume}: a run of {script}, expected one of {args.script}")
    if "save" in given:
        raise UserError(f"--save {args.save}: not with --resume; a resumed run keeps its folder")
    # Either of the two flags of the device replaces both.
    moved = "device" in given or "gpu" in given
    args.started = args.longer_from = None
    for name in vars(args).keys() - _OF_ONE_START:
        value = saved.get(name, parser.get_default(name))
        if name not in given:
            if not (moved and name in ("device", "gpu")):
                setattr(args, name, value)
        elif name == "epochs" and args.script not in _FOLDS and value and value < given[name]:
            args.longer_from = value
        elif given[name] != value and name not in _FREE_ON_RESUME:
            raise UserError(
                f"--{name} {given[name]}: contradicts {folder}, which was started with {value}"
            )
    args.resume = str(folder)
    return args


def _saved_flags(parser: argparse.ArgumentParser, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a checkpoint; an exception where no command line gives a flag its value."""
    for action in parser._actions:
        value = saved.get(action.dest, action.default)
        if action.type and type(value) in (int, float, str) and value != action.default:
            read = action.type(str(value))  # type: ignore[operator]
            if read != value or type(read) is not type(value):
                raise ValueError(f"--{action.dest} {value!r}")
        elif type(value) is not type(action.default) and not (
            action.default is None or value is None or isinstance(value, str | list | tuple)
        ):
            raise ValueError(f"--{action.dest} {value!r}")
    return dict(saved)


def flags_given(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """The values of the flags that stand on the command line itself, by name."""
    # argparse leaves existing attributes alone, so those that change were given.
    missing = object()
    names = vars(parser.parse_args(argv))
    found = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, missing)))
    return {name: value for name, value in vars(found).items() if value is not missing}


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
    given = Path(name)
    if given.name == "checkpoint.pt":
        given = given.parent
    for folder in (given, Path(model_path) / given):
        if (folder / "checkpoint.pt").is_file():
            return folder
    raise UserError(
        f"--resume {name}: no checkpoint.pt in {name} or {Path(model_path) / name}; "
        "expected the folder of a run that finished an epoch or was interrupted"
    )


def describe_start(script: str, argv: Sequence[str]) -> dict[str, str | None]:
    """The command, the commit of the code and the machine of a run, on which weights depend."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "command": shlex.join(["python", script, *argv]),
        "commit": describe_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores{gpu}, "
        f"python {platform.python_version()}, torch {torch.__version__}{describe_processes()}",
    }


def describe_commit() -> str | None:
    """The commit of this code, with -dirty where files differ from it; None outside git."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            words,
            cwd=Path(__file__).parent,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def make_folder(flag: str, name: str) -> Path:
    """The folder that `flag` names, created where it is missing; UserError where that fails."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {folder}: {error.strerror}, expected a folder") from error
    return folder


# --- running a script


def run_command(words: Sequence[str]) -> int:
    """Run `python WORDS` and return its status; a signal lets it save first.

    Raises Interrupted when this process was told to stop.
    """
    with stop_on_signals() as stop:
        process = subprocess.Popen([sys.executable, *words])
        told = False
        while process.poll() is None:
            # A terminal sends SIGINT to both processes; SIGTERM comes to this one only.
            if stop.reason == "SIGTERM" and not told:
                process.terminate()
                told = True
            time.sleep(0.05)
        if stop.reason:
            raise Interrupted(stop)
    return process.returncode


def run_script(
    main: Main, parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Run a script: exit status 0, 2 for an error of the user, 130 or 143 when interrupted.

    Under torchrun the status is the same for each process, and one of them prints the last line.
    """
    _open_streams()
    keep_freed_memory()
    try:
        with process_group() as speaks:
            status, line = _run(main, parser, argv)
            if line is not None:
                _say(f"{parser.prog}: {line}", speaks)
            return status
    except PeerLost as error:
        _say(f"{parser.prog}: error: {error}")
        return 2


def _open_streams() -> None:
    """Let the output go nowhere where it was closed, and any character be written."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # otherwise a checkpoint could get the number of stderr
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w"))
        elif number and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _say(line: str, speaks: Callable[[], bool] = lambda: True) -> None:
    """Print the last line, where this process `speaks`.

    torchrun repeats at the end of its report what the process says that ended first, which may be
    any of them: so each leaves the line in its file.
    """
    with suppress(KeyError, OSError):
        text = json.dumps(
            {"message": {"message": line, "extraInfo": {"timestamp": int(time.time())}}}
        )
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(text)
    with suppress(OSError):
        if speaks():
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def _run(
    main: Main, parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[int, str | None]:
    """The exit status of a script, and its last line, if any."""
    args = argparse.Namespace()
    try:
        with _printed_once():
            args = parse(parser, argv)
        if world_size() > 1 and "save" not in args:
            raise UserError("torchrun: this program is of one process; start it with python")
        _require_same_flags(args)
        main(args)
        sys.stdout.flush()
    except UserError as error:
        return 2, f"error: {error}{_advice(error)}"
    except PeerLost as error:
        return 2, f"error: {error}; what was saved before is kept: go on with --resume"
    except Interrupted as interrupted:
        end = "saved" if interrupted.resumable else "nothing saved"
        # Only the first process knows when all is saved.
        line = f"stopped ({interrupted.reason}); {end}" if rank() == 0 else None
        return _EXIT_STATUS[str(interrupted.reason)], line
    except KeyboardInterrupt:
        return _EXIT_STATUS["SIGINT"], "interrupted; what was saved before is kept"
    except BrokenPipeError:  # the reader of our output has ended
        _mute()
    except Exception as error:
        line = _explain(error, getattr(args, "resume", None))
        if line is None:
            raise
        logging.getLogger(LOGGER_NAME).debug("%s", line, exc_info=True)
        return 2, f"error: {UserError(line)}"
    return 0, None


def _explain(error: Exception, resumed: str | None) -> str | None:
    """The line for an error whose cause is not the code; None where it may be.

    What fails in a run that was `resumed` is laid to its checkpoint; its log has the traceback.
    """
    text = (str(error).strip().splitlines() or [""])[0][:200]
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if is_out_of_memory(error):
        return (
            f"out of memory ({text or reason}); start again with a lower "
            "--batch_size, or go on with --resume where there is more memory"
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        # A full disk behind stdout; other files raise a WriteError.
        _mute()
        return (
            f"the output cannot be written ({error.strerror}); "
            f"{_WRITE_ADVICE[error.errno]}: files that were written before are kept"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return resumed and (
        f"{resumed}/checkpoint.pt: {reason}; expected a checkpoint of the same script and version"
    )


def _require_same_flags(args: argparse.Namespace) -> None:
    """Raise UserError, in every process, where torchrun started them with different flags."""
    own = {name: value for name, value in vars(args).items() if name not in _OF_ONE_MACHINE}
    own["resume"] = getattr(args, "resume", None) is not None  # a path, too
    found = gather(own)
    differ = sorted(name for name in own if any(each.get(name) != own[name] for each in found))
    if found != [own] * len(found):
        raise UserError(
            f"torchrun: its processes were started with different {', '.join(differ)}; expected "
            "the same flags everywhere"
        )


@contextmanager
def _printed_once() -> Iterator[None]:
    """Let only the first process print the usage or help of argparse."""
    if rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _mute() -> None:
    """Discard what is buffered for stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _advice(error: UserError) -> str:
    """What to do about a file that could not be written."""
    if not isinstance(error, WriteError):
        return ""
    number = getattr(error.__cause__, "errno", None)
    if number == errno.ENOENT:
        return "; was its folder removed? Bring it back and go on with --resume, or start again"
    todo = _WRITE_ADVICE.get(number or 0, "check the folder")
    return f"; {todo}, then go on with --resume, or start again where nothing was saved before"


def keep_freed_memory() -> None:
    """Let glibc reuse what a step frees: fetching it anew costs a CPU run 5 to 10 % of its time."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_MAX, M_TRIM_, M_TOP_PAD
        libc.mallopt(option, value)
