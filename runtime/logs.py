"""The log of a run, and the lock that keeps its folder to one process."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from runtime.errors import UserError, WriteError
from runtime.files import TEMPORARY
from runtime.processes import describe_processes, rank

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

LOGGER_NAME = "auto_fernet"
SILENCE = 30.0  # seconds without a line, after which a long pass says how far it is
log = logging.getLogger(LOGGER_NAME)


class _Terminal(logging.StreamHandler):
    """Lines on stderr; `last` is when the last was written, in seconds since the epoch."""

    last = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self.last = record.created


def log_if_silent(message: str, *values: Any) -> None:
    """Log a line if none was logged for SILENCE seconds."""
    for handler in log.handlers:
        if isinstance(handler, _Terminal) and time.time() - handler.last > SILENCE:
            log.info(message, *values)


def open_log(folder: Path | None = None) -> logging.Logger:
    """The logger of a run: lines on stderr and, with a date, in `folder`/log.txt.

    Only the first process logs. Raises UserError when another process runs in `folder`, WriteError
    when it cannot be written.
    """
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.DEBUG)  # tracebacks, in the file alone
    log.propagate = False
    if rank() > 0:
        log.addHandler(logging.NullHandler())
        return log
    terminal = _Terminal(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    terminal.setLevel(logging.INFO)
    log.addHandler(terminal)
    if folder is not None:
        file = _LogFile(folder / "log.txt")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)
        if not file.locked:
            log.warning("%s: files cannot be locked here; let one process run in it", folder)
    return log


def discard_unused_run() -> None:
    """Remove the folder of a run that was refused before it wrote anything but its log."""
    for handler in list(log.handlers):
        if isinstance(handler, _LogFile):
            path = Path(handler.baseFilename)
            if [file.name for file in path.parent.iterdir()] == [path.name]:
                open_log()
                path.unlink()
                path.parent.rmdir()


class _LogFile(logging.FileHandler):
    """The log of a run folder, which is locked as long as the process lives that writes to it.

    Unfinished files of a killed process are removed. A full disk is a WriteError.
    """

    def __init__(self, path: Path) -> None:
        self._lock, self.locked = ExitStack(), False
        try:
            if path.is_fifo():  # writing would wait for a reader
                raise UserError(f"{path}: a FIFO, expected a regular file")
            # File names need not be UTF-8.
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise WriteError(path, error) from error
        try:
            # The log, which is locked over NFS too, and the folder, as the log may be removed.
            folder = os.open(path.parent, os.O_RDONLY)
            self._lock.callback(os.close, folder)
            for place in (self.stream, folder):
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
                self.locked = True
        except BlockingIOError:
            self.close()
            raise UserError(
                f"{path.parent}: another process runs in it; wait for its end, or start another "
                "run without --resume, under another --save"
            ) from None
        except (OSError, AttributeError):  # a file system without locks; not a Unix
            pass
        for unfinished in path.parent.glob(f"*{TEMPORARY}") if self.locked else ():
            with suppress(OSError):
                unfinished.unlink()

    def close(self) -> None:
        super().close()
        self._lock.close()

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        # Otherwise it would be written again with every later line.
        log.removeHandler(self)
        raise WriteError(self.baseFilename, error) from error


def describe_machine(device: torch.device) -> str:
    """One line for the log: device, threads, and the versions that figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    spins = os.environ.get("GOMP_SPINCOUNT")
    return (
        f"device {device} ({name}), {torch.get_num_threads()} CPU threads"
        f"{f' (GOMP_SPINCOUNT={spins})' if spins else ''}, "
        f"python {platform.python_version()}, torch {torch.__version__}{describe_processes()}"
    )
