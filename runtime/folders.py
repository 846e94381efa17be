"""Run folders: new ones, and those that are in use."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from runtime.errors import UserError
from runtime.files import TEMPORARY
from runtime.processes import from_rank_zero


def create_run_folder(model_path: Path | str, label: str | None, default: str) -> Path:
    """Create `model_path`/`label`, or without a label `model_path`/`default`-DATE-TIME.

    All processes get the folder that the first creates. Raises UserError when the labelled folder
    holds anything but a log, which a run leaves that ended before it saved.
    """
    return from_rank_zero(lambda: _create_run_folder(Path(model_path), label, default))


def _create_run_folder(parent: Path, label: str | None, default: str) -> Path:
    try:
        if label is not None:
            folder = parent / label
            folder.mkdir(parents=True, exist_ok=True)
            require_unused(folder, label)
            return folder
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ["", *(f"-{k}" for k in range(2, 100))]:
            folder = parent / f"{default}-{stamp}{suffix}"
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
        raise UserError(f"{parent}: no free name for a run folder")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{parent / (label or '')}: cannot create a run folder ({reason})"
        ) from None


def require_unused(folder: Path, label: str | None) -> None:
    """Raise UserError when `folder` holds anything but a log and unfinished files."""
    names = [path.name for path in folder.iterdir()]
    if any(name != "log.txt" and not name.endswith(TEMPORARY) for name in names):
        resumable = (folder / "checkpoint.pt").is_file()
        raise UserError(
            f"--save {label}: {folder} is not empty; choose another label"
            + (f", or go on with --resume {folder}" if resumable else "")
        )
