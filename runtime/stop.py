"""Runs that end early: signals and the time limit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from runtime.processes import all_reduce_max, is_distributed

# Of several the last is reported.
_REASONS = (None, "time limit", "SIGHUP", "SIGTERM", "SIGINT")


class Interrupted(Exception):
    """A run that ends early: `reason`, and whether --resume can continue it."""

    def __init__(self, reason: str, *, resumable: bool) -> None:
        super().__init__(reason)
        self.reason, self.resumable = reason, resumable


class GracefulStop:
    """What a run asks after each step: whether it should end early.

    `resumable`: whether the run leaves something that --resume continues.
    """

    def __init__(self, minutes: float | None = None, *, resumable: bool = True) -> None:
        self.resumable = resumable
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
            raise Interrupted(reason, resumable=self.resumable)

    def notice(self, number: int) -> None:
        """Remember a signal."""
        self._signal = signal.Signals(number).name


@contextmanager
def stop_on_signals(
    minutes: float | None = None, *, resumable: bool = True
) -> Iterator[GracefulStop]:
    """A `GracefulStop` that notices SIGINT, SIGTERM, SIGHUP; a second ends the process at once.

    Not so under torchrun, which passes one Ctrl-C on as several signals and kills what does not end
    in time; nor after a SIGHUP, which shell and terminal both send. nohup ignores SIGHUP.
    """
    stop = GracefulStop(minutes, resumable=resumable)
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    with ExitStack() as handlers:

        def notice(number: int, _frame: object) -> None:
            stop.notice(number)
            if not is_distributed() and number != hang_up:
                handlers.close()

        numbers = [signal.SIGINT, signal.SIGTERM]
        if hang_up and signal.getsignal(hang_up) != signal.SIG_IGN:
            numbers.append(hang_up)
        for number in numbers:
            handlers.callback(signal.signal, number, signal.signal(number, notice))
        yield stop
