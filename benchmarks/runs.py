"""Start, watch, kill and compare runs of the scripts, for tests and `benchmarks.campaign`."""

from __future__ import annotations

import importlib
import multiprocessing
import os
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

from common.cli import run_script

ROOT = Path(__file__).resolve().parent.parent
# Threads change the order of sums, and so the last bits.
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def command(template: list[str], data: Path | str, out: Path, *more: str) -> list[str]:
    """The words of a script's command line, with `{data}` and `{out}` filled in."""
    return [sys.executable, *(word.format(data=data, out=out) for word in template), *more]


def run(words: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command to its end on one thread, with its output as text."""
    env = {**os.environ, **_ONE_THREAD}
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def stop_when(
    words: list[str], line: str, number: int, log: Path, cwd: Path = ROOT
) -> subprocess.Popen[str]:
    """Start a command, send signal `number` once the file `log` holds `line`; wait for its end."""
    env, pipe = {**os.environ, **_ONE_THREAD}, subprocess.PIPE
    process = subprocess.Popen(words, cwd=cwd, env=env, stderr=pipe, stdout=pipe, text=True)
    deadline = time.monotonic() + 600
    while not (log.is_file() and line in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{line!r} not found in {log}"
        time.sleep(0.002)
    process.send_signal(number)
    process.wait(timeout=60)
    return process


def same(first: Any, second: Any) -> bool:
    """Whether two nested containers of tensors and plain values are equal, bit for bit."""
    if torch.is_tensor(first):
        return torch.is_tensor(second) and first.dtype == second.dtype and first.equal(second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without measured times."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def difference(folder: Path, whole: Path) -> str | None:
    """What differs between the results of a run in `folder` and of one in `whole`; None if nothing.

    Compared bit for bit, except for times: weights, optimizers, progress, genotype and reports.
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
        for group in checkpoint["optimizer"]["param_groups"]:
            del group["lr"]  # every step sets its own; a run that had ended takes none when resumed
    if not same(found, expected):
        return "another checkpoint.pt"
    for name in ("genotype.txt", "alphas.csv", "PublicTest_report.txt"):
        if (whole / name).is_file() and (folder / name).read_text() != (whole / name).read_text():
            return f"another {name}"
    return None


class Child:
    """A script in a process forked from one that has imported everything, so that it starts fast.

    `words` are those of its command line, its output goes to `log`. `before`, a function at the top
    of a module, is called in the process before the script's main; `environment` is added to its
    own; `cwd` is its folder.
    """

    def __init__(
        self,
        words: list[str],
        log: Path,
        before: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self.log = log
        arguments = (words, str(log), before, dict(environment or {}), cwd)
        self._process = _forking().Process(target=_run_here, args=arguments)
        self._process.start()
        self.pid: int = self._process.pid

    def wait(self, seconds: float = 120) -> int:
        """Wait for the end; the exit status, negative for a signal. Raises TimeoutError."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"no end after {seconds} s: {self.printed()[-300:]}")
        return self._process.exitcode

    def wait_for(self, line: str, seconds: float = 120) -> None:
        """Wait until `line` is printed; TimeoutError or ValueError when it is not."""
        deadline = time.monotonic() + seconds
        while line not in self.printed():
            if self._process.exitcode is not None:
                raise ValueError(f"ended without {line!r}: {self.printed()[-300:]}")
            if time.monotonic() > deadline:
                self._process.kill()
                raise TimeoutError(f"{line!r} not printed")
            time.sleep(0.001)

    def signal(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def printed(self) -> str:
        """The output so far."""
        return self.log.read_text() if self.log.exists() else ""


@cache
def _forking() -> Any:
    # The server that forks is a new process: it has this environment, and no threads.
    os.environ |= {**_ONE_THREAD, "PYTHONPATH": str(ROOT)}
    context = multiprocessing.get_context("forkserver")
    # torch and matplotlib import the last two late, torch's for seconds.
    late = ["torch._dynamo", "matplotlib.backends.backend_agg"]
    context.set_forkserver_preload(["train_FER2013", "search", "benchmarks.runs", *late])
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
    # tqdm's own lock is a semaphore of the system, which a killed process would leave behind.
    tqdm.set_lock(threading.RLock())
    module = importlib.import_module(words[0].removesuffix(".py"))
    os.chdir(cwd)
    if before is not None:
        before()
    sys.exit(run_script(module.main, module.build_parser(), words[1:]))
