"""What is set before torch and matplotlib are loaded: threads, backend, what Ctrl-C prints.

GNU OpenMP's threads wait in a busy loop for some milliseconds. That is best on a quiet machine.
Where other programs of threads use the same cores, the loops take the time of the very threads
that are waited for, and a step takes up to twenty times as long (docs/speed.md). So where most of
the CPU is in use at the start, a short loop is set. Settings of the user are left as they are.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from pathlib import Path
from types import TracebackType

SETTINGS = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
BUSY = 0.5  # share of the CPU in use, from which the machine counts as busy
SPINS = 1000  # an estimated 50 microseconds
SAMPLE = 0.1  # seconds


def prepare() -> None:
    """Set how threads wait, and Agg for plots; let a Ctrl-C during imports print one line."""
    sys.excepthook = _show
    if "IPython" not in sys.modules:  # plots are files; a notebook's backend may not be installed
        os.environ["MPLBACKEND"] = "agg"
    settled = "torch" in sys.modules or any(name in os.environ for name in SETTINGS)
    if not settled and cpu_use() >= BUSY:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def cpu_use(stat: Path = Path("/proc/stat")) -> float:
    """The share of the CPU in use during SAMPLE seconds, in [0, 1]; 0 where that is not known."""
    try:
        before = _cpu_times(stat)
        time.sleep(SAMPLE)
        spent = [b - a for a, b in zip(before, _cpu_times(stat), strict=True)]
    except (OSError, ValueError):  # not Linux
        return 0.0
    return 1 - (spent[3] + spent[4]) / max(sum(spent), 1)  # idle, and waiting for disks


def _cpu_times(stat: Path) -> list[int]:
    """user, nice, system, idle, iowait and so on of all cores, in ticks since the start."""
    return [int(word) for word in stat.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


def keep_freed_memory() -> None:
    """Let glibc reuse what a step frees: fetching it anew costs a CPU run 5 to 10 % of its time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
            libc.mallopt(option, value)  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
