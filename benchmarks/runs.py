"""Start, watch, kill and compare runs of the scripts, for tests and `benchmarks.faults`."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.cli import run_script

ROOT = Path(__file__).resolve().parent.parent
# Threads change the order of sums, and so the last bits.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def same(first: Any, second: Any) -> bool:
    """Whether two nested containers of tensors and plain values are equal, bit for bit."""
    if torch.is_tensor(first):
        return torch.is_tensor(second) and first.dtype == second.dtype and first.equal(second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def difference(folder: Path, whole: Path) -> str | None:
    """What differs between the results of a run in `folder` and of one in `whole`; None if nothing.

    Compared bit for bit, except for times: weights, optimizers, progress, genotype and reports.
    """
    missing = [path.name for path in whole.iterdir() if not (folder / path.name).is_file()]
    if missing:
        return f"{', '.join(missing)} missing"
    first, second = (
        torch.load(place / "checkpoint.pt", weights_only=True) for place in (folder, whole)
    )
    for checkpoint in (first, second):
        del checkpoint["args"], checkpoint["state"]["seconds"]
        for record in checkpoint["state"]["history"]:
            record.pop("seconds", None)
        for group in checkpoint["optimizer"]["param_groups"]:
            del group["lr"]  # every step sets its own; a run that had ended takes none when resumed
    if not same(first, second):
        return "another checkpoint.pt"
    for name in ("genotype.txt", "alphas.csv", "PublicTest_report.txt"):
        if (whole / name).is_file() and (folder / name).read_bytes() != (whole / name).read_bytes():
            return f"another {name}"
    return None


@dataclass(eq=False)
class Child:
    """A script in a process forked from one that has imported everything, so that it starts fast.

    `words` are those of its command line, its output goes to `log`. `before`, a function at the top
    of a module, is called in the process before the script's main; `environment` is added to its
    own; `cwd` is its folder.
    """

    words: list[str]
    log: Path
    before: Callable[[], Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = ROOT

    def __post_init__(self) -> None:
        process = _forking().Process(target=self._run)  # takes a copy of this object along
        process.start()
        self._process, self.pid = process, process.pid

    def _run(self) -> None:
        os.environ |= self.environment
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        torch.set_num_threads(1)
        # tqdm's own lock is a semaphore of the system, which a killed process would leave behind.
        tqdm.set_lock(threading.RLock())
        module = importlib.import_module(self.words[0].removesuffix(".py"))
        os.chdir(self.cwd)
        if self.before is not None:
            self.before()
        sys.exit(run_script(module.main, module.build_parser(), self.words[1:]))

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
        return self.log.read_text("utf-8") if self.log.exists() else ""


@cache
def _forking() -> Any:
    # The server that forks is a new process: it has this environment, and no threads.
    os.environ |= {**ONE_THREAD, "PYTHONPATH": str(ROOT)}
    context = multiprocessing.get_context("forkserver")
    # torch and matplotlib import the last two late, torch's for seconds.
    late = ["torch._dynamo", "matplotlib.backends.backend_agg"]
    context.set_forkserver_preload(["train_FER2013", "search", "benchmarks.runs", *late])
    return context
