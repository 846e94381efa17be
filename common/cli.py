"""How a script runs and ends: errors as one line, exit statuses."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.parsing import parse
from runtime.errors import PeerLost, UserError, WriteError, describe_error, is_out_of_memory
from runtime.logs import discard_unused_run, log
from runtime.processes import gather, process_group, rank, world_size
from runtime.startup import keep_freed_memory
from runtime.stop import Interrupted, stop_on_signals

# What may differ between the machines of a run.
_OF_ONE_MACHINE = {"data", "device", "gpu", "model_path", "resumed", "started"}

Main = Callable[[argparse.Namespace], dict[str, Any]]


def run_command(words: Sequence[str], resume: Sequence[str] | None = None) -> int:
    """Run `python WORDS` and return its status; a signal lets it save first.

    Raises Interrupted when this process was told to stop; `resume` are the flags to go on with.
    """
    with stop_on_signals(resume=resume) as stop:
        process = subprocess.Popen([sys.executable, *words])
        told = False
        while process.poll() is None:
            # A terminal sends SIGINT and SIGHUP to both processes; others come to this one only.
            if stop.requested() not in (None, "SIGINT", "SIGHUP") and not told:
                process.terminate()
                told = True
            time.sleep(0.05)
        stop.check()
    return process.returncode


def run_script(
    main: Main, parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Run a script: exit status 0, 2 for an error of the user, or 128 and the number of a signal.

    Under torchrun the status is the same for each process, and one of them prints the last line.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # any name can be printed
    keep_freed_memory()
    try:
        with process_group() as speaks:
            status, line = _run(main, parser, argv)
            if line is not None:
                _print_last(f"{parser.prog}: {line}", speaks)
            return status
    except PeerLost as error:
        _print_last(f"{parser.prog}: error: {error}")
        return 2


def _run(
    main: Main, parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[int, str | None]:
    """The exit status of a script, and its last line, if any."""
    try:
        args = parse(parser, argv)
        if world_size() > 1:
            _check_processes(args)
        main(args)
        sys.stdout.flush()
    except (WriteError, PeerLost) as error:
        return 2, f"error: {error}; what was saved before is kept: go on with --resume"
    except UserError as error:
        discard_unused_run()
        return 2, f"error: {error}"
    except Interrupted as interrupted:
        end = "nothing saved"
        if interrupted.resume is not None:
            program = parser.get_default("script") or parser.prog.removeprefix("python ")
            end = f"saved; go on with: python {program} {shlex.join(interrupted.resume)}"
        # Only the first process knows when all is saved.
        line = f"stopped ({interrupted.reason}); {end}" if rank() == 0 else None
        reason = interrupted.reason
        return (0 if reason == "time limit" else 128 + signal.Signals[reason]), line
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, "interrupted; what was saved before is kept"
    except BrokenPipeError:  # the reader of our output has ended
        _discard_output()
    except Exception as error:
        line = _explain(error)
        if line is None:
            raise
        log.debug("%s", line, exc_info=True)
        return 2, f"error: {line}"
    return 0, None


def _explain(error: Exception) -> str | None:
    """The line for an error whose cause is not the code; None where it may be."""
    if is_out_of_memory(error):
        return (
            f"out of memory ({describe_error(error)}); start again with a lower --batch_size, or "
            "go on with --resume where there is more memory"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _discard_output() -> None:
    """Discard what is buffered for stdout, which Python would write once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_processes(args: argparse.Namespace) -> None:
    """Raise UserError, in every process, where torchrun started them with different flags."""
    if "save" not in args:
        raise UserError("torchrun: this program is of one process; start it with python")
    own = {name: value for name, value in vars(args).items() if name not in _OF_ONE_MACHINE}
    own["resume"] = getattr(args, "resume", None) is not None  # a path, too
    others = gather(own)
    differ = sorted(name for name in own if any(flags.get(name) != own[name] for flags in others))
    if others != [own] * len(others):
        raise UserError(
            f"torchrun: its processes were started with different {', '.join(differ)}; expected "
            "the same flags everywhere"
        )


def _print_last(line: str, speaks: Callable[[], bool] = lambda: True) -> None:
    """Print the last line, where this process `speaks`.

    torchrun repeats at the end of its report what the process says that ended first, which may be
    any of them: so each leaves the line in its file.
    """
    with suppress(KeyError, OSError):
        message = {"message": line, "extraInfo": {"timestamp": int(time.time())}}
        text = json.dumps({"message": message})
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(text, "utf-8")
    if speaks():
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
