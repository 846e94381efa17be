"""Runs that survive: atomic writes, checkpoints, run folders, interruptions, logging, seeds."""

from __future__ import annotations

import csv
import io
import logging
import os
import pickle
import platform
import random
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from common import ranks

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

CHECKPOINT_FORMAT = "auto-fernet/1"
LOGGER_NAME = "auto_fernet"

# What files end in until they are whole and take their names.
TEMPORARY = ".unfinished.tmp"
# What files of torch.save began with before they were zip archives: a number, pickled.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


MAX_LINE = 2000  # characters of an error's line


class UserError(Exception):
    """An error that the user can mend; its text is one line naming what was found and expected.

    File names and the messages of libraries may hold anything: what does not print is replaced.
    """

    def __init__(self, text: str) -> None:
        shown = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
        super().__init__(shown if len(shown) <= MAX_LINE else f"{shown[: MAX_LINE - 3]}...")


class WriteError(UserError):
    """A file that could not be written, for the OSError that is its cause."""


def atomic_write(path: Path | str, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` on a temporary file beside `path`, then put it in place of `path`.

    The file is flushed and fsynced before it replaces `path`, so that whoever is killed leaves
    the old file or the new one, never a part. Of several ranks the first alone writes. Raises
    WriteError when the folder or the disk refuses; the old file then stays as it was.
    """
    if ranks.rank() > 0:
        return
    path = Path(path)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=path.name, suffix=TEMPORARY
        )
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; what a run writes is shared like any other file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save puts an error of its own in the place of what stopped its writing.
        cause = error
        while isinstance(cause, RuntimeError) and cause.__context__ is not None:
            cause = cause.__context__
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if not isinstance(cause, OSError):
            raise
        raise WriteError(f"{path}: cannot be written ({cause.strerror or cause})") from cause
    finally:
        if temporary:
            # Gone where it took its place, or where somebody removed the folder.
            with suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically; errors as `atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode()))


def save_checkpoint(path: Path | str, kind: str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values that says what it is, atomically.

    `kind` is "weights", "training", "search" or "folds"; `content` must hold nothing but tensors,
    numbers, text, None, lists and dicts of them, so that `load_checkpoint` can read it without
    pickle.
    """
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "kind": kind,
        "torch": str(torch.__version__),
        **content,
    }
    atomic_write(path, lambda file: torch.save(checkpoint, file))


def load_checkpoint(path: Path | str, kinds: Iterable[str]) -> dict[str, Any]:
    """Read a checkpoint of one of `kinds` onto the CPU; nothing in the file is ever run.

    A bare state dict (a mapping of names to tensors) is returned as kind "state_dict" where
    `kinds` admits it. Raises UserError for a missing, cut, damaged, foreign or wrong file; what
    the parts of a checkpoint say is for those to check who use them.
    """
    path = Path(path)
    expected = f"expected a checkpoint ({' or '.join(kinds)})"
    try:
        _check_whole(path)
        with warnings.catch_warnings():
            # Of kinds of tensors that no network of ours has, which are refused later.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {expected}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors and plain values, and was not run; {expected}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {expected}") from None
    except Exception as error:  # torch and zipfile raise many kinds for damaged files
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{path}: damaged or not a checkpoint ({reason}); {expected}") from None
    if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT:
        found = content.get("kind")
    elif isinstance(content, dict) and content and all(map(torch.is_tensor, content.values())):
        found, content = "state_dict", {"kind": "state_dict", "state_dict": content}
    else:
        found = "something else"
    if found not in kinds:
        raise UserError(f"{path}: holds {found}; {expected}")
    return content


def _check_whole(path: Path) -> None:
    """Raise ValueError or BadZipFile unless `path` is what torch.save writes, undamaged.

    torch looks at no check sum, so a flipped bit would be a wrong weight; and it inflates, so a
    small file could be a huge one. Files of before torch 1.6 have no check sums.
    """
    with path.open("rb") as file:
        if file.read(len(_LEGACY_START)) == _LEGACY_START:
            return
        with zipfile.ZipFile(file) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("compressed, which torch.save never does")
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the check sum of {damaged} is wrong")


def check_state(module: torch.nn.Module, state: Mapping[str, Any], source: Path | str) -> None:
    """Raise UserError, naming `source` and the first name, unless `state` fits `module`.

    It fits with tensors of the same names, shapes and kinds (floating numbers of any precision),
    all of them finite. `module` may be on the meta device.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"{source}: no state dict but {type(state).__name__}, expected tensors")
    own = module.state_dict()
    for name in [*own, *state]:
        there, here = _describe(state.get(name)), _describe(own.get(name))
        if there != here:
            raise UserError(f"{source}: {name} is {there}, the network expects {here}")
        if state[name].is_meta or not bool(state[name].isfinite().all()):
            raise UserError(f"{source}: {name} is not finite, expected a usable network")


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if not torch.is_tensor(value) or value.layout is not torch.strided or value.is_quantized:
        return f"{type(value).__name__} {getattr(value, 'layout', '')}".strip()
    shape = str(tuple(value.shape))
    return shape if value.is_floating_point() else f"{shape} of {value.dtype}"


def load_state(module: torch.nn.Module, state: Mapping[str, Any], source: Path | str) -> None:
    """Load `state` into `module` where `check_state` finds it to fit; else its UserError."""
    check_state(module, state, source)
    module.load_state_dict(state)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was exhausted, the device's or the machine's: torch says so in many ways."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def derive_seed(*keys: int) -> int:
    """A 63-bit seed that the keys determine, unrelated for any two different tuples of keys."""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def create_run_folder(model_path: Path | str, label: str | None, default: str) -> Path:
    """Make and return `model_path`/`label`, or a dated folder of its own without a label.

    All ranks get the folder that the first makes. Raises UserError when the labelled folder holds
    something already.
    """
    return ranks.from_first(lambda: _make_run_folder(Path(model_path), label, default))


def _make_run_folder(parent: Path, label: str | None, default: str) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if label is not None:
            folder = parent / label
            folder.mkdir(parents=True, exist_ok=True)
            # A log alone is of a run that ended before it saved anything.
            names = [path.name for path in folder.iterdir()]
            if any(name != "log.txt" and not name.endswith(TEMPORARY) for name in names):
                resumable = (folder / "checkpoint.pt").is_file()
                raise UserError(
                    f"--save {label}: {folder} is not empty; choose another label"
                    + (f", or go on with --resume {folder}" if resumable else "")
                )
            return folder
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ["", *(f"-{k}" for k in range(2, 100))]:
            folder = parent / f"{default}-{stamp}{suffix}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
        raise UserError(f"{parent}: no free name for a run folder")
    except OSError as error:
        raise UserError(f"{parent}: cannot make a run folder ({error.strerror or error})") from None


# Of several the last has the last word.
_REASONS = (None, "time limit", "SIGTERM", "SIGINT")


class Stop:
    """Why a run should end early: None, "SIGINT", "SIGTERM" or "time limit".

    All ranks ask for the `reason` together and get the same one, so that they end at the same step.
    `resumable` says whether the run then leaves something that --resume goes on from.
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
        return _REASONS[ranks.highest(_REASONS.index(own))]

    def notice(self, number: int) -> None:
        """Remember a signal; the loops look at `reason` after each step."""
        self._signal = signal.Signals(number).name


class Interrupted(Exception):
    """A run that ends early, for the `reason` of its `stop`, `resumable` or not."""

    def __init__(self, stop: Stop) -> None:
        self.reason = stop.reason
        super().__init__(self.reason)
        self.resumable = stop.resumable


@contextmanager
def stop_on_signals(minutes: float | None = None, *, resumable: bool = True) -> Iterator[Stop]:
    """A `Stop` that notices SIGINT and SIGTERM; a second signal ends the process at once.

    Not so under torchrun, which passes one Ctrl-C on as several signals, and itself ends what does
    not end in time.
    """
    stop = Stop(minutes, resumable=resumable)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def notice(number: int, _frame: object) -> None:
        stop.notice(number)
        if not ranks.several():
            for each in numbers:
                signal.signal(each, before[each])

    for number in numbers:
        signal.signal(number, notice)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, before[number])


class _LogFile(logging.FileHandler):
    """The log of the one process that runs in its folder, locked as long as that lives.

    What an earlier one left unfinished there, killed while it wrote, is removed.
    A full disk is an error of the user's like any other, not a traceback a line.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Names of files may be no UTF-8.
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
        if fcntl is None:
            return
        try:
            fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(
                f"{path.parent}: another process runs in it; wait for its end, or start a run of "
                "its own without --resume, under another --save"
            ) from None
        except OSError:
            return  # a file system that knows no locks
        for left in path.parent.glob(f"*{TEMPORARY}"):
            with suppress(OSError):
                left.unlink()

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        # What could not be written would be tried again at every later line and at the end.
        logging.getLogger(LOGGER_NAME).removeHandler(self)
        raise WriteError(
            f"{self.baseFilename}: cannot be written ({error.strerror or error})"
        ) from error


def open_log(folder: Path | None = None) -> logging.Logger:
    """The logger of a run: lines on the terminal (stderr) and, dated, in `folder`/log.txt.

    Of several ranks the first alone has something to say. Raises UserError when another process
    runs in `folder`, WriteError when it cannot be written.
    """
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if ranks.rank() > 0:
        logger.addHandler(logging.NullHandler())
        return logger
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(terminal)
    if folder is not None:
        file = _LogFile(folder / "log.txt")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(file)
    return logger


def describe_machine(device: torch.device) -> str:
    """One line for the log: device, threads and the versions that figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return (
        f"device {device} ({name}), {torch.get_num_threads()} CPU threads, "
        f"python {platform.python_version()}, torch {torch.__version__}{ranks.note()}"
    )


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write rows of plain values as CSV; columns in order of first appearance."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class Meter:
    """Mean loss and top-1 accuracy over many batches, summed on the device without a host sync.

    Each rank counts its share of the images; what is read is of all.
    """

    def __init__(self, device: torch.device, sums: Iterable[float] = (0.0, 0.0, 0.0)) -> None:
        """`sums`: those of a meter to go on from: loss, correct answers, images."""
        # float32 where the device has no float64 (mps); exact far beyond any epoch's counts.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.tensor(list(sums), dtype=dtype, device=device)
        if ranks.rank() > 0:
            self._sums.zero_()

    def update(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: its mean loss (scalar), logits (N, K) and labels (N,)."""
        correct = (logits.argmax(dim=1) == labels).sum()
        count = torch.full_like(correct, len(labels))
        batch = torch.stack([loss.detach() * len(labels), correct, count])
        self._sums += batch.to(self._sums.dtype)

    def totals(self) -> list[float]:
        """The sums so far, which a meter can go on from; waits for the device."""
        return ranks.total(self._sums).tolist()

    def read(self) -> tuple[float, float]:
        """(mean loss, accuracy in percent) so far; waits for the device."""
        loss, correct, count = self.totals()
        return loss / max(count, 1), 100.0 * correct / max(count, 1)
