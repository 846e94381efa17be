"""What must be set before torch is loaded: how threads wait, and what Ctrl-C prints meanwhile.

GNU OpenMP's threads wait in a busy loop for up to some milliseconds. Where other programs use the
same cores, such a loop takes the time of the very thread that is waited for (docs/speed.md). A
short one is enough between the operations of a step. Settings of the user are left as they are.
Imports take seconds, in which a Ctrl-C prints one line instead of a traceback.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

_SPINS = "1000"  # an estimated 50 microseconds
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")

if "torch" not in sys.modules and not any(name in os.environ for name in _SETTINGS):
    os.environ["GOMP_SPINCOUNT"] = _SPINS


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _show


def describe_threads(threads: int) -> str:
    """One line for the log: how `threads` CPU threads wait, and what to do if cores are busy.

    The number of threads is left alone, because the last bits of a result depend on it.
    """
    found = " ".join(f"{n}={os.environ[n]}" for n in _SETTINGS if n in os.environ)
    line = f"waiting threads: {found or 'as OpenMP chooses'}"
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # not on Windows
    if threads > 1 and load >= cores and "OMP_NUM_THREADS" not in os.environ:
        line += f"; load {load:.1f} on {cores} cores: OMP_NUM_THREADS=1 may be faster"
    return line
