"""Runs that end early: signals and the time limit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.processes import all_reduce_max, is_distributed

# Of several the last is reported.
_REASONS = (None, "time limit", "SIGHUP", "SIGTERM", "SIGINT")


class GracefulStop:
    """Why a run should end early: `reason` is one of _REASONS.

    The loops ask after each step. All processes ask together and get the same answer.
    `resumable`: whether the run leaves something that --resume continues.
    """

    def __init__(self, minutes: float | None = None, *, resumable: bool = True) -> None:
        self.resumable = resumable
        self._deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
        self._signal: str | None = None

    @property
    def reason(self) -> str | None:
        own = self._signal
        if own is None and self._deadline is not None and time.monotonic() >= self._deadline:
            own = "time limit"
        return _REASONS[all_reduce_max(_REASONS.index(own))]

    def notice(self, number: int) -> None:
        """Remember a signal."""
        self._signal = signal.Signals(number).name


class Interrupted(Exception):
    """A run that ends early, for the `reason` of its `stop`, `resumable` or not."""

    def __init__(self, stop: GracefulStop) -> None:
        self.reason = stop.reason
        self.resumable = stop.resumable
        super().__init__(self.reason)


@contextmanager
def stop_on_signals(
    minutes: float | None = None, *, resumable: bool = True
) -> Iterator[GracefulStop]:
    """A `GracefulStop` that notices SIGINT, SIGTERM, SIGHUP; a second ends the process at once.

    Not so under torchrun, which passes one Ctrl-C on as several signals and kills what does not end
    in time; nor after a SIGHUP, which shell and terminal both send. nohup ignores SIGHUP.
    """
    stop = GracefulStop(minutes, resumable=resumable)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hang_up and signal.getsignal(hang_up) != signal.SIG_IGN:
        before[hang_up] = signal.getsignal(hang_up)

    def notice(number: int, _frame: object) -> None:
        stop.notice(number)
        if not is_distributed() and number != hang_up:
            restore()

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, notice)
    try:
        yield stop
    finally:
        restore()
