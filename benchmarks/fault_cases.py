"""Faults that befall runs, each as a case: run a script, break something, look at what is left.

A case gets a `Bench` and returns None when all held, else what did not: the exit status tells, the
last line on the terminal says what to do, and what was saved before goes on to the same end.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.runs import Child, difference
from data.cache import cache_path, read_cached
from data.fer2013 import CLASSES, SPLITS, Split
from data.writers import write_csv
from utils import UserError, load_checkpoint

# The smallest runs that have all that a real one has: several epochs of several steps, decisions.
_COMMON = (
    "--data {data} --device cpu --report_freq 1 --limit_batches 2 --epochs 3 --model_path {out}"
)
WORDS = {
    "train": f"train_FER2013.py --arch --init_channels 1 --layers 1 --batch_size 8 {_COMMON}",
    "search": "search.py --init_channels 1 --layers 1 --batch_size 4 --batch_increase 2 "
    f"--warmup_dec_epoch 1 --decision_freq 1 --use_history {_COMMON}",
}


class Bench:
    """A folder with a small set, and the undisturbed run of each script, made when first asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "fer2013.csv"
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(len(CLASSES)).repeat(2)
        images = torch.randint(0, 256, (len(labels), 1, 48, 48), generator=generator)
        write_csv({name: Split(images.to(torch.uint8), labels) for name in SPLITS}, self.data)
        self._count = 0
        self._seconds: dict[str, float] = {}

    def start(
        self, script: str, *flags: str, before: Callable[[], None] | None = None
    ) -> tuple[Child, Path]:
        """A run of `script` with more flags, in a new folder of its own unless they say."""
        self._count += 1
        label = f"{script}-{self._count}"
        words = WORDS[script].format(data=self.data, out=self.folder).split()
        given = flags if {"--save", "--resume", "--model_path"} & set(flags) else ("--save", label)
        log = self.folder / f"{label}.txt"
        return Child([*words, *given, *(flags if given is not flags else ())], log, before), (
            self.folder / label
        )

    def whole(self, script: str) -> Path:
        """The folder of the run that nothing disturbs."""
        folder = self.folder / f"{script}-whole"
        if not (folder / "summary.json").is_file():
            started = time.monotonic()
            child, _ = self.start(script, "--save", folder.name)
            if child.wait() != 0:
                raise RuntimeError(child.printed())
            self._seconds[script] = time.monotonic() - started
        return folder

    def seconds(self, script: str) -> float:
        """How long the undisturbed run took."""
        self.whole(script)
        return self._seconds[script]

    def finish(self, script: str, folder: Path) -> str | None:
        """Go on with the run in `folder`; None when it ends like the undisturbed one."""
        begun = (folder / "checkpoint.pt").is_file()
        child, _ = self.start(script, "--resume" if begun else "--save", str(folder))
        if child.wait() != 0:
            return f"resuming: {child.printed()[-300:]}"
        return difference(folder, self.whole(script))


def _told(child: Child, status: int, *words: str) -> str | None:
    """None when it ends with `status` and a last line that has all `words`."""
    found, printed = child.wait(), child.printed()
    last = printed.strip().split("\n")[-1]
    if found == status and all(word in last for word in words) and "Traceback" not in printed:
        return None
    return f"status {found}, {status} expected with {', '.join(words)}: {printed[-400:]}"


def _left_over(folder: Path) -> str | None:
    """What a fault must not leave: parts of files."""
    names = [path.name for path in folder.glob("*.tmp")]
    return f"{', '.join(names)} left" if names else None


# ---------------------------------------------------------------- what breaks inside a process


def _after(calls: int, function: Callable, instead: Callable) -> Callable:
    """`function` for the first `calls` calls, then `instead`."""
    left = calls

    def counting(*args, **kwargs):
        nonlocal left
        left -= 1
        return (function if left >= 0 else instead)(*args, **kwargs)

    return counting


def _refuse(number: int) -> Callable:
    def refuse(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return refuse


def fill_disk() -> None:
    os.fsync = _after(8, os.fsync, _refuse(errno.ENOSPC))


def lock_folder() -> None:
    tempfile.mkstemp = _after(8, tempfile.mkstemp, _refuse(errno.EROFS))


def explode() -> None:
    """The fourth step, the second of the second epoch, leaves a weight that is no number."""
    plain = torch.optim.SGD.step

    def exploding(optimizer: torch.optim.SGD, *args: Any) -> None:
        plain(optimizer, *args)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].fill_(float("nan"))

    torch.optim.SGD.step = _after(3, plain, exploding)


def exhaust_device() -> None:
    def exhausted(*_args, **_kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    torch.optim.SGD.step = _after(3, torch.optim.SGD.step, exhausted)


def exhaust_memory() -> None:
    """Leave 200 MiB to allocate."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (200 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def exhaust_memory_in_time() -> None:
    """The fourth step, the second of the second epoch, wants more than there are addresses for."""
    torch.optim.SGD.step = _after(
        3, torch.optim.SGD.step, lambda *_args, **_kwargs: torch.empty(1 << 50)
    )


def limit_files() -> None:
    """Files of at most 20 kB, which a checkpoint is not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def stop_clock() -> None:
    """The second never passes."""
    time.strftime = lambda *_args: "20260101-000000"


# ---------------------------------------------------------------- the cases


def disk_full(bench: Bench, script: str) -> str | None:
    child, folder = bench.start(script, before=fill_disk)
    wrong = _told(child, 2, "No space left on device", "free some room", "--resume")
    return wrong or _left_over(folder) or bench.finish(script, folder)


def file_size_limit(bench: Bench, script: str) -> str | None:
    child, folder = bench.start(script, before=limit_files)
    wrong = _told(child, 2, "File too large", "ulimit -f")
    return wrong or _left_over(folder) or bench.finish(script, folder)


def folder_read_only_at_once(bench: Bench, script: str) -> str | None:
    # Root may write into folders that are read-only, but into none that cannot exist.
    for place in (str(bench.data / "below"), "/proc/none"):
        child, _ = bench.start(script, "--model_path", place)
        if wrong := _told(child, 2, place, "cannot make a run folder"):
            return wrong
    return None


def folder_read_only_in_time(bench: Bench, script: str) -> str | None:
    child, folder = bench.start(script, before=lock_folder)
    wrong = _told(child, 2, "Read-only file system", "make the folder writable")
    return wrong or bench.finish(script, folder)


def folder_removed(bench: Bench, script: str) -> str | None:
    child, folder = bench.start(script)
    child.wait_for("epoch 2 step 1/")
    shutil.rmtree(folder)
    wrong = _told(child, 2, "cannot be written", "was its folder removed?")
    return wrong or ("it was made again" if folder.exists() else bench.finish(script, folder))


def two_in_a_second(bench: Bench, script: str) -> str | None:
    place = bench.folder / "second"
    children = [bench.start(script, "--model_path", str(place), before=stop_clock)[0]
                for _ in range(2)]  # fmt: skip
    for child in children:
        if wrong := _told(child, 0):
            return wrong
    ends = [difference(folder, bench.whole(script)) for folder in sorted(place.iterdir())]
    shutil.rmtree(place)
    return None if ends == [None, None] else f"{len(ends)} folders, {ends}"


def two_in_a_folder(bench: Bench, script: str) -> str | None:
    first, folder = bench.start(script)
    first.wait_for("epoch 1 step 1/")
    # It would end before the others begin.
    first.signal(signal.SIGSTOP)
    try:
        for flag in ("--resume", "--save"):
            second, _ = bench.start(script, flag, str(folder))
            if wrong := _told(second, 2, str(folder)):
                return wrong
    finally:
        first.signal(signal.SIGCONT)
    return _told(first, 0) or difference(folder, bench.whole(script))


def cache_built_twice(bench: Bench, script: str) -> str | None:
    cache_path(bench.data).unlink(missing_ok=True)
    runs = [bench.start(script) for _ in range(2)]
    for child, _ in runs:
        if wrong := _told(child, 0):
            return wrong
    ends = [difference(folder, bench.whole(script)) for _, folder in runs]
    lines: list[str] = []
    read_cached(bench.data, lines.append)
    return None if (ends, lines) == ([None, None], []) else f"{ends}, {lines}"


def second_ctrl_c(bench: Bench, script: str) -> str | None:
    child, folder = bench.start(script)
    child.wait_for("epoch 2 step 1/")
    child.signal(signal.SIGINT)
    time.sleep(random.random() / 20)
    child.signal(signal.SIGINT)
    return _told(child, 130, "saved") or _left_over(folder) or bench.finish(script, folder)


def loss_not_a_number(bench: Bench, script: str) -> str | None:
    child, folder = bench.start(script, before=explode)
    wrong = _told(child, 2, "epoch 2, step 2: ", "not finite", "--learning_rate")
    if wrong:
        return wrong
    saved = load_checkpoint(folder / "checkpoint.pt", ["training", "search"])["state"]
    if (saved["epoch"], saved["step"]) != (1, 0):
        return f"a checkpoint of epoch {saved['epoch']}, step {saved['step']}"
    return bench.finish(script, folder)


def memory_of_device(bench: Bench, script: str) -> str | None:
    child, folder = bench.start(script, before=exhaust_device)
    wrong = _told(child, 2, "out of memory", "lower --batch_size", "--resume")
    return wrong or bench.finish(script, folder)


def memory_of_machine(bench: Bench, script: str) -> str | None:
    child, folder = bench.start(script, "--init_channels", "256", "--batch_size", "42",
                                before=exhaust_memory)  # fmt: skip
    wrong = _told(child, 2, "out of memory", "lower --batch_size") or _left_over(folder)
    if wrong:
        return wrong
    child, folder = bench.start(script, before=exhaust_memory_in_time)
    wrong = _told(child, 2, "out of memory", "lower --batch_size", "--resume")
    return wrong or _left_over(folder) or bench.finish(script, folder)


def cache_cut(bench: Bench, _script: str) -> str | None:
    expected = read_cached(bench.data, lambda _line: None)
    path = cache_path(bench.data)
    whole = path.read_bytes()
    for length in _lengths(len(whole))[::4]:
        path.write_bytes(whole[:length])
        found = read_cached(bench.data, lambda _line: None)
        if not all(map(np.array_equal, found, expected)):
            return f"other images from a cache of {length} bytes"
    return None


def checkpoint_cut(bench: Bench, script: str) -> str | None:
    whole = (bench.whole(script) / "checkpoint.pt").read_bytes()
    path = bench.folder / "cut.pt"
    for length in _lengths(len(whole)):
        path.write_bytes(whole[:length])
        try:
            load_checkpoint(path, ["training", "search"])
        except UserError as error:
            if str(path) in str(error) and "damaged" in str(error):
                continue
            return f"cut to {length} bytes: {error}"
        return f"cut to {length} bytes: read"
    return None


def _lengths(size: int) -> list[int]:
    """Where files are cut: near both ends byte by byte, and between."""
    between = np.linspace(64, size - 64, 100).astype(int).tolist()
    return [*range(64), *between, *range(size - 64, size)]


FAULTS = {
    case.__name__.replace("_", " "): case
    for case in (
        disk_full, file_size_limit, folder_read_only_at_once, folder_read_only_in_time,
        folder_removed, two_in_a_second, two_in_a_folder, cache_built_twice, second_ctrl_c,
        loss_not_a_number, memory_of_device, memory_of_machine, cache_cut, checkpoint_cut,
    )
}  # fmt: skip


def kill_and_resume(bench: Bench, script: str, moment: float, again: float | None) -> str | None:
    """SIGKILL after `moment` seconds, and after `again` seconds of going on; then to the end."""
    child, folder = bench.start(script)
    for seconds in (moment, again):
        if seconds is None:
            continue
        time.sleep(seconds)
        child.signal(signal.SIGKILL)
        if child.wait() not in (0, -signal.SIGKILL):
            return child.printed()[-300:]
        if seconds == moment and again is not None:
            begun = (folder / "checkpoint.pt").is_file()
            child, _ = bench.start(script, "--resume" if begun else "--save", str(folder))
    return bench.finish(script, folder)
