"""Functions that all other modules use: errors, checkpoints, run folders, processes, seeds.

Imports no other module of this repository. Under torchrun several processes train as one; the
functions of the section "processes" are called by all of them in the same order, and return at once
what they were given where there is one process.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import pickle
import platform
import random
import secrets
import signal
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

CHECKPOINT_FORMAT = "auto-fernet/1"
LOGGER_NAME = "auto_fernet"
TEMPORARY = ".unfinished.tmp"  # the suffix of a file until it is complete
# The keys under which other codes save a state dict, and the names of wrapping modules in it.
_STATE_KEYS = ("state_dict", "model_state_dict", "net", "model")
_WRAPPERS = ("module", "_orig_mod")
MAX_LINE = 2000  # characters of an error message
# Files of torch.save before torch 1.6 begin with this number, pickled.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

Value = TypeVar("Value")


# --- errors


class UserError(Exception):
    """An error that the user can correct: one line naming what was found and what was expected."""

    def __init__(self, text: str) -> None:
        shown = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
        super().__init__(shown if len(shown) <= MAX_LINE else f"{shown[: MAX_LINE - 3]}...")


class WriteError(UserError):
    """A file that could not be written; `__cause__` is the OSError."""


class PeerLost(Exception):
    """Another process of the group has ended or cannot be reached."""


@contextmanager
def reading(path: Path | str, expected: str = "") -> Iterator[None]:
    """Turn any exception raised while `path` is read and used into one UserError that names it.

    Code that reads a user's file runs inside this block and needs no checks of its own.
    UserErrors pass unchanged; exhausted memory and lost processes are no fault of the file.
    """
    try:
        yield
    except (UserError, PeerLost):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if isinstance(error, FileNotFoundError):
            reason = "no such file"
        elif isinstance(error, OSError):
            reason = f"cannot be read ({error.strerror or error})"
        else:
            text = (str(error).strip().splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise UserError(f"{path}: {reason}{expected and f'; expected {expected}'}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was exhausted, of the device or the machine; torch reports it in many ways."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


# --- files


def atomic_write(path: Path | str, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` on a temporary file beside `path`, then replace `path` by it.

    The file is flushed and fsynced first, so that a killed process leaves the old file or the new
    one. Only the first process writes. Raises WriteError; the old file is then unchanged.
    """
    if rank() > 0:
        return
    path = Path(path)
    # Named first, so that it is removed even if its creation is interrupted.
    temporary = path.with_name(f"{path.name}{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text; errors as `atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode()))


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows of plain values as CSV, columns in order of first appearance."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


# --- checkpoints


def save_checkpoint(path: Path | str, kind: str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, atomically: `content` with its format, kind and version of torch.

    `kind` is "weights", "training", "search" or "folds". `content` holds tensors, numbers, text,
    None, and lists and dicts of them, which `load_checkpoint` reads without running anything.
    """
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "kind": kind,
        "torch": str(torch.__version__),
        **content,
    }
    # Into memory first: what torch raises for a file that cannot be written depends on its version.
    stream = io.BytesIO()
    torch.save(checkpoint, stream)
    atomic_write(path, lambda file: file.write(stream.getbuffer()))


def load_checkpoint(path: Path | str, kinds: Sequence[str]) -> dict[str, Any]:
    """Read a checkpoint of one of `kinds` onto the CPU, with `weights_only=True`.

    A bare state dict (a mapping of names to tensors), as it is or under a key of `_STATE_KEYS` as
    other codes save it, is returned as kind "state_dict" where `kinds` admits it, without the
    prefixes of DataParallel and torch.compile and without the counts of a profiler. Raises
    UserError for a missing, damaged, foreign or wrong file.
    """
    path = Path(path)
    expected = f"a checkpoint ({' or '.join(kinds)})"
    try:
        with reading(path, expected), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused later
            content = torch.load(_read_archive(path), map_location="cpu", weights_only=True)
            # Views of a few bytes would make us build a huge network.
            if (needed := _bytes_of_tensors(content)) > (size := path.stat().st_size):
                raise ValueError(f"its tensors take {needed} bytes, the file {size}")
    except UserError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise UserError(
            f"{path}: holds more than tensors and plain values, and was not run; expected "
            f"{expected}"
        ) from None
    if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT:
        found = content.get("kind")
    elif state := _state_dict_in(content):
        found, content = "state_dict", {"kind": "state_dict", "state_dict": state}
    else:
        found = "something else"
    if found not in kinds:
        raise UserError(f"{path}: holds {found}; expected {expected}")
    return content


def _state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """The state dict that a checkpoint of other code is or holds, with plain names, or None."""
    if not isinstance(content, dict):
        return None
    for key in _STATE_KEYS:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    if not content or not all(map(torch.is_tensor, content.values())):
        return None
    state = {}
    for name, value in content.items():
        parts = [part for part in str(name).split(".") if part not in _WRAPPERS]
        if parts[-1:] not in (["total_ops"], ["total_params"]):
            state[".".join(parts)] = value
    return state


def _read_archive(path: Path) -> BinaryIO:
    """The content of an undamaged file of torch.save, as a file that holds nothing else.

    torch verifies no check sums, so that a flipped bit would be a wrong weight; it inflates; and of
    an archive with two directories it may read the one that zipfile does not. So it gets a new
    archive of what zipfile read, which is no larger than the file.
    """
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_START))
        if start == _LEGACY_START:
            return io.BytesIO(start + file.read())
        if start[:2] != b"PK":
            raise ValueError("not a file of torch.save")
        copy = io.BytesIO()
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as checked:
            members = archive.infolist()
            if any(info.compress_type != zipfile.ZIP_STORED for info in members):
                raise ValueError("compressed, which torch.save never does")
            if min(info.header_offset for info in members) != 0:
                raise ValueError("the archive does not start at the first byte")
            if sum(info.file_size for info in members) > os.fstat(file.fileno()).st_size:
                raise ValueError("its members are larger than the file")
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the check sum of {damaged} is wrong")
            for info in members:
                checked.writestr(info.filename, archive.read(info))
        copy.seek(0)
        return copy


def _bytes_of_tensors(content: Any) -> int:
    """Bytes of the tensors in nested containers, each counted as often as it is named."""
    total, left, seen = 0, [content], set()
    while left:
        value = left.pop()
        if torch.is_tensor(value):
            total += value.numel() * value.element_size()
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return total


def load_state(module: nn.Module, state: Any, source: Path | str) -> None:
    """Load the state dict `state` into `module`; errors as `check_state`."""
    check_state(module, state, source)
    module.load_state_dict(state)


def check_state(module: nn.Module, state: Any, source: Path | str) -> None:
    """Raise UserError, naming `source`, unless the state dict `state` fits `module`.

    Names and shapes must be the module's, and every value finite. `module` may be on the meta
    device.
    """
    with reading(source, "the weights of such a network"):
        own = module.state_dict()
        for name in [*own, *state]:
            found = _shape_of(state.get(name)) or "missing"
            wanted = _shape_of(own.get(name)) or "nothing"
            if found != wanted:
                raise UserError(f"{source}: {name} is {found}, the network expects {wanted}")
            if not bool(state[name].isfinite().all()):
                raise UserError(f"{source}: {name} is not finite, expected a usable network")


def _shape_of(value: Any) -> str:
    if not torch.is_tensor(value) or value.layout is not torch.strided or value.is_quantized:
        return "" if value is None else f"a {getattr(value, 'layout', type(value).__name__)}"
    shape = str(tuple(value.shape))
    return shape if value.is_floating_point() else f"{shape} of {value.dtype}"


# --- seeds


def derive_seed(*keys: int) -> int:
    """A 63-bit seed determined by the keys, unrelated for any two different tuples of keys."""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# --- run folders and their logs


def create_run_folder(model_path: Path | str, label: str | None, default: str) -> Path:
    """Create `model_path`/`label`, or without a label `model_path`/`default`-DATE-TIME.

    All processes get the folder that the first creates. Raises UserError when the labelled folder
    holds anything but a log, which a run leaves that ended before it saved.
    """
    return from_rank_zero(lambda: _create_run_folder(Path(model_path), label, default))


def _create_run_folder(parent: Path, label: str | None, default: str) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if label is not None:
            folder = parent / label
            folder.mkdir(parents=True, exist_ok=True)
            require_unused(folder, label)
            return folder
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ["", *(f"-{k}" for k in range(2, 100))]:
            folder = parent / f"{default}-{stamp}{suffix}"
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
        raise UserError(f"{parent}: no free name for a run folder")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{parent}: cannot create a run folder ({reason})") from None


def require_unused(folder: Path, label: str | None) -> None:
    """Raise UserError when `folder` holds anything but a log and unfinished files."""
    names = [path.name for path in folder.iterdir()]
    if any(name != "log.txt" and not name.endswith(TEMPORARY) for name in names):
        resumable = (folder / "checkpoint.pt").is_file()
        raise UserError(
            f"--save {label}: {folder} is not empty; choose another label"
            + (f", or go on with --resume {folder}" if resumable else "")
        )


def open_log(folder: Path | None = None) -> logging.Logger:
    """The logger of a run: lines on stderr and, with a date, in `folder`/log.txt.

    Only the first process logs. Raises UserError when another process runs in `folder`, WriteError
    when it cannot be written.
    """
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.DEBUG)  # tracebacks, in the file alone
    logger.propagate = False
    if rank() > 0:
        logger.addHandler(logging.NullHandler())
        return logger
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    terminal.setLevel(logging.INFO)
    logger.addHandler(terminal)
    if folder is not None:
        file = _LogFile(folder / "log.txt")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(file)
        if not file.locked:
            logger.warning("%s: files cannot be locked here; let one process run in it", folder)
    return logger


def lock(file: Any, *, wait: bool) -> bool:
    """Lock an open file until it is closed; False where files cannot be locked.

    Raises BlockingIOError when another process has locked it and this one should not `wait`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise
    except (OSError, AttributeError):  # a file system without locks; not a Unix
        return False


class _LogFile(logging.FileHandler):
    """The log of a run folder, locked as long as the process lives that writes to the folder.

    Unfinished files of a killed process are removed. A full disk is a WriteError.
    """

    def __init__(self, path: Path) -> None:
        try:
            # File names need not be UTF-8.
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
        try:
            self.locked = lock(self.stream, wait=False)
        except BlockingIOError:
            self.close()
            raise UserError(
                f"{path.parent}: another process runs in it; wait for its end, or start another "
                "run without --resume, under another --save"
            ) from None
        for left in path.parent.glob(f"*{TEMPORARY}") if self.locked else ():
            with suppress(OSError):
                left.unlink()

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        # Otherwise it would be written again with every later line.
        logging.getLogger(LOGGER_NAME).removeHandler(self)
        raise WriteError(
            f"{self.baseFilename}: cannot be written ({error.strerror or error})"
        ) from error


def describe_machine(device: torch.device) -> str:
    """One line for the log: device, threads, and the versions that figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return (
        f"device {device} ({name}), {torch.get_num_threads()} CPU threads, "
        f"python {platform.python_version()}, torch {torch.__version__}{describe_processes()}"
    )


# --- interruption

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


# --- processes (torchrun)

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Shard:
    """A process's part of N images: `rows`, `count` of them, `weight` = count / N.

    A process for which none are left computes the first shard with weight 0, so that it has
    gradients for the same weights as the others. `largest` is the count of the first shard.
    """

    rows: slice
    count: int
    weight: float
    largest: int


def shard_of(total: int, processes: int, number: int) -> Shard:
    """The shard of process `number` of `processes`: contiguous, as equal as possible.

    No shard is a single image, which batch norm could not normalise, unless it is the only one.
    """
    filled = max(1, min(processes, total // 2))
    each, more = divmod(total, filled)
    largest = each + (more > 0)
    if number >= filled:
        return Shard(slice(0, largest), 0, 0.0, largest)
    start = number * each + min(number, more)
    count = each + (number < more)
    return Shard(slice(start, start + count), count, count / max(1, total), largest)


def shard(total: int) -> Shard:
    """This process's shard of `total` images."""
    return shard_of(total, world_size(), rank())


def is_distributed() -> bool:
    """Whether this process belongs to a group, possibly as the only one."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process; 0 writes, logs and shows progress."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def hide_progress() -> bool | None:
    """The `disable` of tqdm: None, which shows a bar on a terminal, for the first process only."""
    return True if rank() > 0 else None


def describe_processes() -> str:
    """The number of processes, for lines that say what figures depend on."""
    return f", {world_size()} processes" if is_distributed() else ""


@contextmanager
def process_group() -> Iterator[Callable[[], bool]]:
    """The group in which torchrun started this process, if it did, for the length of the block.

    Yields a function that returns True for the first process to call it and False for all others,
    so that a message is printed once. Raises PeerLost when the processes cannot meet.
    """
    if not all(name in os.environ for name in _VARIABLES):
        yield lambda: True
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, number, count = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:
        raise PeerLost(f"the processes cannot meet ({_first_line(error)})") from error

    def first() -> bool:
        try:
            return store.add("auto_fernet/spoken", 1) == 1
        except RuntimeError:  # the store ended with its machine
            return True

    try:
        yield first
    finally:
        # Before torch 2.8 the end of a group waits for its threads without releasing the GIL, which
        # they need to free what was exchanged last (torch's pull request 154976).
        time.sleep(0.1)
        dist.destroy_process_group()


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLost(f"another process of this run has ended ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@torch.no_grad()
def average_tensors(tensors: Sequence[Tensor], weight: float) -> None:
    """Replace `tensors`, of the same shapes everywhere, by their weighted mean over the processes.

    The weights of all processes sum to one. One exchange of one flat tensor.
    """
    if not is_distributed() or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    # A shard of weight 0 may hold NaN, and NaN times zero is NaN.
    flat = flat * weight if weight else torch.zeros_like(flat)
    with _exchange():
        dist.all_reduce(flat)
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def average_gradients(model: nn.Module, weight: float) -> None:
    """Average the gradients of a step, and batch-norm statistics, over the processes.

    With `weight` that of the shard it is the gradient of the mean loss of the whole batch, except
    that batch norm normalises each shard by its own statistics. DistributedDataParallel is not
    used, as it does not see alphas, whose gradient comes from `torch.autograd.grad`.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    average_tensors([*gradients, *(b for b in model.buffers() if b.is_floating_point())], weight)


def broadcast_model(model: nn.Module) -> None:
    """Give all processes the weights of the first, as random draws may differ between machines."""
    if is_distributed():
        with _exchange():
            for tensor in model.state_dict().values():
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the processes."""
    if is_distributed():
        tensor = tensor.clone()
        with _exchange():
            dist.all_reduce(tensor)
    return tensor


def all_reduce_max(number: int) -> int:
    """The highest `number` of all processes, without waiting for a device."""
    if not is_distributed():
        return number
    found = torch.tensor(number)
    with _exchange():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gather_rows(rows: Tensor) -> Tensor:
    """The CPU tensors `rows` of all processes, concatenated; they may differ in length."""
    return torch.cat(gather(rows)) if is_distributed() else rows


def gather(value: Value) -> list[Value]:
    """`value` of every process; all get all."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * world_size()
    with _exchange():
        dist.all_gather_object(found, value)
    return found


def from_rank_zero(make: Callable[[], Value]) -> Value:
    """What `make` returns on the first process, the only one that calls it."""
    return gather(make() if rank() == 0 else None)[0]  # type: ignore[return-value]


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block on the first process, then on all others."""
    if rank() > 0:
        all_reduce_max(0)
    yield
    if rank() == 0:
        all_reduce_max(0)


class AverageMeter:
    """Mean loss and top-1 accuracy over batches, summed on the device without a host sync.

    Each process counts its shard of the images; the figures are of all.
    """

    def __init__(self, device: torch.device, sums: Iterable[float] = (0.0, 0.0, 0.0)) -> None:
        """`sums`: loss, correct answers and images of a meter to continue."""
        # float32 where the device has no float64 (mps); counts of an epoch stay exact.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.tensor(list(sums), dtype=dtype, device=device)
        if rank() > 0:
            self._sums.zero_()

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (scalar), logits (N, K) and labels (N,)."""
        correct = (logits.argmax(dim=1) == labels).sum()
        count = torch.full_like(correct, len(labels))
        batch = torch.stack([loss.detach() * len(labels), correct, count])
        self._sums += batch.to(self._sums.dtype)

    def totals(self) -> list[float]:
        """The sums so far; waits for the device."""
        return all_reduce_sum(self._sums).tolist()

    def read(self) -> tuple[float, float]:
        """(mean loss, accuracy in percent) so far; waits for the device."""
        loss, correct, count = self.totals()
        return loss / max(count, 1), 100.0 * correct / max(count, 1)
