"""Runs of the scripts for tests and for `make faults`: start, watch, kill, compare."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import cli

ROOT = Path(__file__).resolve().parent.parent


def command(template: list[str], data: Path | str, out: Path, *more: str) -> list[str]:
    """The words of a script's command line, its places filled in."""
    words = [word.format(data=data, out=out) for word in template]
    return [sys.executable, *words, *more]


def run(words: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run to the end on one thread, output as text, in the repository or another folder."""
    return subprocess.run(
        words, cwd=cwd, env=_environment(), capture_output=True, text=True, check=False
    )


def stop_when(
    words: list[str], line: str, number: int, log: Path, cwd: Path = ROOT
) -> subprocess.Popen[str]:
    """Start, send signal `number` once the file `log` holds `line`, and wait for the end."""
    process = subprocess.Popen(
        words, cwd=cwd, env=_environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (log.is_file() and line in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{line!r} never came"
        time.sleep(0.002)
    process.send_signal(number)
    process.wait(timeout=60)
    return process


def kill_when(words: list[str], line: str, log: Path) -> None:
    """Start, and kill without warning once `log` holds `line`."""
    assert stop_when(words, line, signal.SIGKILL, log).returncode == -signal.SIGKILL


def same(first: Any, second: Any) -> bool:
    """Whether two nests of tensors and plain values are equal, bit for bit."""
    if torch.is_tensor(first):
        return torch.is_tensor(second) and first.dtype == second.dtype and first.equal(second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without what a clock measured."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def difference(folder: Path, whole: Path) -> str | None:
    """What a run in `folder` ended otherwise with than the same run, never disturbed, in `whole`.

    None when weights, optimisers, progress, records (but for times), genotype and reports are
    equal, bit for bit.
    """
    missing = [path.name for path in whole.iterdir() if not (folder / path.name).is_file()]
    if missing:
        return f"{', '.join(missing)} missing"
    found, expected = (
        torch.load(each / "checkpoint.pt", weights_only=True) for each in (folder, whole)
    )
    for checkpoint in (found, expected):
        del checkpoint["args"], checkpoint["state"]["seconds"]
        checkpoint["state"]["history"] = without_times(checkpoint["state"]["history"])
    if not same(found, expected):
        return "another checkpoint.pt"
    for name in ("genotype.txt", "alphas.csv", "PublicTest_report.txt"):
        if (whole / name).is_file() and (folder / name).read_text() != (whole / name).read_text():
            return f"another {name}"
    return None


class Child:
    """A script in a process of its own that was forked from one in which all is imported.

    Starts in a fraction of the time of a real command line, takes the same words, and ends with
    the same status. What it prints goes to `log`. `before`, a function of a module by name, is
    called in the process before the script's main, to break something there; `environment` is
    added to its own; it runs in the folder `cwd`.
    """

    def __init__(
        self,
        words: list[str],
        log: Path,
        before: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ):
        self.log = log
        place = (words, str(log), before, dict(environment or {}), cwd)
        self._process = _forking().Process(target=_run_here, args=place)
        self._process.start()
        self.pid: int = self._process.pid

    def wait(self, seconds: float = 120) -> int:
        """The status once it has ended, negative for a signal; TimeoutError when it does not."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"no end after {seconds} s: {self.printed()[-300:]}")
        return self._process.exitcode

    def wait_for(self, line: str, seconds: float = 120) -> None:
        """Return once it has printed `line`; TimeoutError or ValueError when it does not."""
        deadline = time.monotonic() + seconds
        while line not in self.printed():
            if self._process.exitcode is not None:
                raise ValueError(f"ended without {line!r}: {self.printed()[-300:]}")
            if time.monotonic() > deadline:
                self._process.kill()
                raise TimeoutError(f"{line!r} never came")
            time.sleep(0.001)

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def printed(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""


@cache
def _forking() -> Any:
    # The server that forks is a new process: it has this environment, and no threads.
    os.environ |= {**_environment(), "PYTHONPATH": str(ROOT)}
    context = multiprocessing.get_context("forkserver")
    # torch and matplotlib import the last two late, torch's for seconds.
    context.set_forkserver_preload(
        [
            "train_FER2013",
            "search",
            "benchmarks.runs",
            "torch._dynamo",
            "matplotlib.backends.backend_agg",
        ]
    )
    return context


def _run_here(
    words: list[str],
    log: str,
    before: Callable[[], None] | None,
    environment: dict[str, str],
    cwd: Path,
) -> None:
    os.environ |= environment
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    # Its own lock is a semaphore of the system, which a killed process leaves there.
    tqdm.set_lock(threading.RLock())
    module = importlib.import_module(words[0].removesuffix(".py"))
    os.chdir(cwd)
    if before is not None:
        before()
    sys.exit(cli.run(module.main, module.build_parser(), words[1:]))


def _environment() -> dict[str, str]:
    # Threads change the order of sums, and so the last bits.
    return {**os.environ, "OMP_NUM_THREADS": "1"}
