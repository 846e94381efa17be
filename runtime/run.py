"""A run of a script and its progress: epochs recorded, logged and saved, also when interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from runtime.board import Board
from runtime.logs import log, log_if_silent
from runtime.processes import hide_progress
from runtime.stop import GracefulStop, Interrupted, stop_on_signals


@dataclass
class Run:
    """Where a run computes and writes, and what ends it early.

    `folder` is the run folder; `resumed` the content of its checkpoint at --resume, else None;
    `inputs` by flag the digest of what was read, which checkpoints keep; `board` what --tensorboard
    writes, None without it and in all processes but the first.
    """

    folder: Path
    device: torch.device
    precision: torch.autocast
    stop: GracefulStop = field(default_factory=GracefulStop)
    resumed: dict[str, Any] | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    board: Board | None = None

    @contextmanager
    def interruptible(self, minutes: float | None = None, *, resumable: bool = True) -> Iterator:
        """Let signals and `minutes` end the block early, with everything saved."""
        if self.resumed is not None:  # it has no summary until it ends again
            (self.folder / "summary.json").unlink(missing_ok=True)
        resume = ["--resume", str(self.folder)] if resumable else None
        with stop_on_signals(minutes, resume) as self.stop:
            yield

    def log_epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        """Log the record of an epoch: `epoch 3/600 lr 0.02498 train_loss 1.2345 ... seconds 12.3`.

        Every loop calls it once per epoch; another logger is added here.
        """
        if self.board is not None:
            self.board.write(record["epoch"], record)
        values = (
            f"{name} {value:.4g}" if name == "lr" else f"{name} {value:.4f}"
            for name, value in record.items()
            if name != "epoch" and isinstance(value, float)
        )
        log.info("epoch %d/%d %s", record["epoch"], epochs, " ".join(values))


@dataclass
class Progress:
    """Where a run stands: finished epochs, steps and sums of the current one, and its history.

    `history` holds one record of plain values per epoch; `extra` plain values of the script.
    """

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


@contextmanager
def recorded_epoch(
    run: Run, progress: Progress, epochs: int, save: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """The end of an epoch, the same in every loop: record, log, save.

    Yields the record, which the block fills. After the block the epoch counts as finished; when it
    is interrupted, its steps so far are saved.
    """
    started = time.monotonic()
    record: dict[str, Any] = {"epoch": progress.epoch + 1}
    try:
        yield record
    except Interrupted:
        progress.seconds += time.monotonic() - started
        save()
        raise
    record["seconds"] = progress.seconds + time.monotonic() - started
    progress.history.append(record)
    progress.epoch, progress.step = progress.epoch + 1, 0
    progress.sums, progress.seconds = [0.0, 0.0, 0.0], 0.0
    run.log_epoch(record, epochs)
    save()


def best_epoch(history: list[dict[str, Any]], key: str) -> int:
    """The number of the first epoch whose `key` is highest."""
    return max(history, key=lambda record: (record[key], -record["epoch"]))["epoch"]


def first_epoch_reaching(history: list[dict[str, Any]], key: str, value: float) -> int | None:
    """The number of the first epoch whose `key` is at least `value`, or None."""
    return next((record["epoch"] for record in history if record[key] >= value), None)


def progress_bar(
    batches: Iterable[Any], title: str, total: int, done: int = 0, unit: str = "batch"
) -> Iterator[Any]:
    """The batches, of `total` in all, `done` of them before, behind a bar on a terminal.

    Where nothing was logged for a while a line says how far they are.
    """
    bar = tqdm(batches, title, total, initial=done, leave=False, disable=hide_progress(), unit=unit)
    for number, batch in enumerate(bar, done + 1):
        yield batch
        log_if_silent("%s, %s %d of %d", title, unit, number, total)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The precision of forward passes: `amp` "bf16", "off", or "auto", see `computes_bf16`."""
    enabled = computes_bf16(device) if amp == "auto" else amp == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def computes_bf16(device: torch.device) -> bool:
    """Whether a GPU or CPU has units for bfloat16: CPUs with AVX512-BF16 or AMX, as torch says."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch 2.4 lacks the first
    return device.type == "cpu" and any(getattr(torch.cpu, n, lambda: False)() for n in names)
