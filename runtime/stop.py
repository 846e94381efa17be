"""Runs that end early: signals and the time limit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from runtime.processes import all_reduce_max, is_distributed

# Of limits on CPU time, of schedulers before they end a job, of a closed terminal; not on Windows.
_WARNINGS = ("SIGXCPU", "SIGUSR2", "SIGUSR1", "SIGHUP")
# Of several the last is reported.
_REASONS = (None, "time limit", *_WARNINGS, "SIGTERM", "SIGINT")


class Interrupted(Exception):
    """A program that ends early: `reason`, and the flags that continue it, None if none do."""

    def __init__(self, reason: str, resume: Sequence[str] | None) -> None:
        super().__init__(reason)
        self.reason, self.resume = reason, resume


class GracefulStop:
    """What a run asks after each step: whether it should end early.

    `resume`: the flags with which its program continues it; None where that is not possible.
    """

    def __init__(self, minutes: float | None = None, resume: Sequence[str] | None = None) -> None:
        self._resume = resume
        self._deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
        self._signal: str | None = None

    def requested(self) -> str | None:
        """Why the run should end now, one of _REASONS.

        All processes ask together, wait for each other and get the same answer.
        """
        reason = self._signal
        if reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            reason = "time limit"
        return _REASONS[all_reduce_max(_REASONS.index(reason))]

    def check(self) -> None:
        """Raise Interrupted when the run should end; asks as `requested` does."""
        if reason := self.requested():
            raise Interrupted(reason, self._resume)

    def notice(self, number: int) -> None:
        """Remember a signal."""
        self._signal = signal.Signals(number).name


@contextmanager
def stop_on_signals(
    minutes: float | None = None, resume: Sequence[str] | None = None
) -> Iterator[GracefulStop]:
    """A `GracefulStop` that notices signals; a second SIGINT or SIGTERM ends the process at once.

    Not so under torchrun, which passes one Ctrl-C on as several signals and kills what does not end
    in time; nor after the others, which are sent more than once: SIGHUP by shell and terminal,
    SIGXCPU every second. nohup ignores SIGHUP.
    """
    stop = GracefulStop(minutes, resume)
    deadly = (signal.SIGINT, signal.SIGTERM)
    with ExitStack() as handlers:

        def notice(number: int, _frame: object) -> None:
            stop.notice(number)
            if not is_distributed() and number in deadly:
                handlers.close()

        others = [getattr(signal, name) for name in _WARNINGS if hasattr(signal, name)]
        for number in (*deadly, *(n for n in others if signal.getsignal(n) != signal.SIG_IGN)):
            handlers.callback(signal.signal, number, signal.signal(number, notice))
        yield stop
