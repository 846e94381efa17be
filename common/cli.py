"""How a script runs and ends: errors as one line, exit statuses."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from runtime.startup import keep_freed_memory

from common.parsing import parse
from runtime.errors import PeerLost, UserError, WriteError, is_out_of_memory
from runtime.logs import LOGGER_NAME
from runtime.processes import (
    gather,
    process_group,
    rank,
    world_size,
)
from runtime.stop import Interrupted, stop_on_signals

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
