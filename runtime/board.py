"""What TensorBoard shows of a run: event files, with --tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime.errors import UserError, WriteError


class Board:
    """Writes the event files of a run below `folder`.

    Raises UserError without the package tensorboard, which is imported here and nowhere else.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard: needs the package tensorboard; pip install -r "
                "requirements-tensorboard.txt"
            ) from None
        self._make, self._folder, self._part = SummaryWriter, folder, ""
        self._writer: SummaryWriter | None = None

    def begin(self, part: str) -> None:
        """From now on write into the sub-folder `part`, as of a fold."""
        if self._writer is not None:
            self._writer.close()
        self._part, self._writer = part, None

    def write(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Write numbers, text, and tensors as histograms, of `epoch`; WriteError where it fails."""
        folder = self._folder / self._part
        try:
            if self._writer is None:
                # What an interrupted run wrote from this epoch on is not shown.
                self._writer = self._make(str(folder), purge_step=epoch)
            for name, value in values.items():
                if isinstance(value, Tensor):
                    self._writer.add_histogram(name, value, epoch)
                elif isinstance(value, str):
                    self._writer.add_text(name, value, epoch)
                elif name != "epoch":
                    self._writer.add_scalar(name, value, epoch)
            self._writer.flush()
        except OSError as error:
            raise WriteError(folder, error) from error
