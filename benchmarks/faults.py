"""Break, stop and kill runs; what they saved must continue to the same end, bit for bit.

    python -m benchmarks.faults
    python -m benchmarks.faults --kills 10 --only train

Causes every fault in a training and in a search, then kills both at random moments. Prints how many
runs held by kind of fault, and why the others did not; the exit status is then 2.
"""

from __future__ import annotations

import argparse
import errno
import pkgutil
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, product, repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import torch

from benchmarks.runs import Child, difference
from common import arguments, cli
from common.report import format_table
from data.reading.cache import cache_path
from data.sets import load_set
from data.synthetic.fer2013 import draw_fer2013
from data.synthetic.writers import write_csv
from data.types import SPLITS
from runtime.errors import UserError

# Small runs that have all that a real one has: several epochs of several steps, decisions.
_COMMON = "--device cpu --report_freq 1 --limit_batches 2 --epochs 3 --model_path {out}"
SCRIPTS = {
    "train": "train_FER2013.py --data {data} --init_channels 4 --layers 1 --batch_size 8 ",
    "search": "search.py --data {data} --init_channels 4 --layers 1 --batch_size 4 "
    "--batch_increase 2 --warmup_dec_epoch 1 --decision_freq 1 --use_history ",
}
SECOND_EPOCH = "epoch 2 step 1/"  # the line of its first step


class Bench:
    """A folder with a small data set, and an undisturbed run of each script."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "fer2013.csv"
        write_csv(draw_fer2013(counts=dict.fromkeys(SPLITS, 14)), self.data)
        self.seconds: dict[str, float] = {}  # of the undisturbed runs
        self._numbers = count(1)

    def start(
        self, script: str, *flags: str, before: Callable[[], Any] | None = None, line: str = ""
    ) -> tuple[Child, Path]:
        """Start `script`, in a new folder unless `flags` name one, and wait until it prints `line`.

        `before` is called in its process first.
        """
        label = f"{script}-{next(self._numbers)}"
        words = (SCRIPTS[script] + _COMMON).format(data=self.data, out=self.folder).split()
        if not {"--save", "--resume", "--model_path"} & set(flags):
            words += ["--save", label]
        child = Child([*words, *flags], self.folder / f"{label}.txt", before)
        child.wait_for(line)
        return child, self.folder / label

    def whole(self, script: str) -> Path:
        """The folder of the undisturbed run, which is made first when it is missing."""
        folder = self.folder / f"{script}-whole"
        if script not in self.seconds:
            started = time.monotonic()
            check_end(self.start(script, "--save", folder.name)[0], 0)
            self.seconds[script] = time.monotonic() - started
        return folder

    def resume(self, script: str, folder: Path) -> Child:
        """Continue the run in `folder`, or start it again when it saved no checkpoint."""
        flag = "--resume" if (folder / "checkpoint.pt").is_file() else "--save"
        return self.start(script, flag, str(folder))[0]

    def finish(self, script: str, child: Child, folder: Path) -> None:
        """Check that `child` ends well, and its folder as that of the undisturbed run."""
        check_end(child, 0)
        different = difference(folder, self.whole(script))
        assert different is None, different

    def check_rest(self, script: str, folder: Path) -> None:
        """Check that no unfinished file is left, and that the run continues to the same end."""
        left = [path.name for path in folder.glob("*.tmp")]
        assert not left, f"{', '.join(left)} left"
        self.finish(script, self.resume(script, folder), folder)


def check_end(child: Child, status: int, *words: str) -> None:
    """Check that `child` ends with `status`, a last line with all `words`, and no traceback."""
    ended, printed = child.wait(), child.printed()
    last = printed.strip().split("\n")[-1]
    held = ended == status and all(word in last for word in words) and "Traceback" not in printed
    assert held, f"status {ended}, expected {status} with {', '.join(words)}: {printed[-400:]}"


def _replace_after(calls: int, target: str, effect: Any) -> None:
    """Let the function named `target` raise `effect`, or call it instead, after `calls` calls."""
    turns = chain(repeat(pkgutil.resolve_name(target), calls), repeat(Mock(side_effect=effect)))
    patch(target, lambda *args, **kwargs: next(turns)(*args, **kwargs)).start()


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
    limit = pages * resource.getpagesize() + (200 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _exhaust_memory(*_args: Any, **_kwargs: Any) -> None:
    torch.empty(1 << 50)


# What breaks a process, in time in the second step of the second epoch; what its last line says.
BROKEN: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "disk full": (
        partial(_replace_after, 8, "os.fsync", OSError(errno.ENOSPC, "No space left on device")),
        ("No space left on device", "--resume"),
    ),
    "file size limit": (  # a checkpoint is larger
        partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000)),
        ("File too large",),
    ),
    "memory of the machine": (_limit_memory, ("out of memory", "lower --batch_size")),
    "memory in time": (
        partial(_replace_after, 3, "torch.optim.SGD.step", _exhaust_memory),
        ("out of memory", "lower --batch_size", "--resume"),
    ),
}


def broken(kind: str, bench: Bench, script: str) -> None:
    """A run that fails as `kind` says ends with one line and loses nothing that was saved."""
    cause, told = BROKEN[kind]
    at_once = kind == "memory of the machine"
    sizes = ("--init_channels", "256", "--batch_size", "42") if at_once else ()
    child, folder = bench.start(script, *sizes, before=cause)
    check_end(child, 2, *told)
    if at_once:  # before its first step, at which it may have saved what a resumed run begins with
        shutil.rmtree(folder, ignore_errors=True)
    bench.check_rest(script, folder)


def read_only_at_once(bench: Bench, script: str) -> None:
    # Root may write to read-only folders, but not to folders that cannot exist.
    for place in (str(bench.data / "below"), "/proc/none"):
        child, _ = bench.start(script, "--model_path", place)
        check_end(child, 2, place, "cannot create a run folder")


def folder_removed(bench: Bench, script: str) -> None:
    child, folder = bench.start(script, line=SECOND_EPOCH)
    # First renamed, so that nothing is written to it meanwhile.
    shutil.rmtree(folder.rename(folder.with_suffix(".removed")))
    check_end(child, 2, "cannot be written")
    assert not folder.exists(), "created again"
    bench.check_rest(script, folder)


def _stop_clock() -> None:
    patch("time.strftime", return_value="20260101-000000").start()


def two_at_once(bench: Bench, script: str) -> None:
    """Two runs start in one second in one parent folder, without a cache, which both write."""
    place, cache = bench.folder / f"{script}-two", cache_path(bench.data)
    cache.unlink(missing_ok=True)
    flags = ("--model_path", str(place))
    for child in [bench.start(script, *flags, before=_stop_clock)[0] for _ in range(2)]:
        check_end(child, 0)
    ends = [difference(folder, bench.whole(script)) for folder in place.iterdir()]
    assert ends == [None, None], ends
    before = cache.stat().st_mtime_ns
    load_set(bench.data)
    assert cache.stat().st_mtime_ns == before, "the cache was damaged"


def two_in_a_folder(bench: Bench, script: str) -> None:
    first, folder = bench.start(script, line="epoch 1 step 1/")
    first.signal(signal.SIGSTOP)  # it would end before the others begin
    try:
        for flag in ("--resume", "--save"):
            check_end(bench.start(script, flag, str(folder))[0], 2, str(folder))
    finally:
        first.signal(signal.SIGCONT)
    bench.finish(script, first, folder)


def interrupted_twice(bench: Bench, script: str) -> None:
    child, folder = bench.start(script, line=SECOND_EPOCH)
    for _ in range(2):
        child.signal(signal.SIGINT)
        time.sleep(random.random() / 20)
    check_end(child, 130, "saved")
    bench.check_rest(script, folder)


def killed(moment: float, again: float | None, bench: Bench, script: str) -> None:
    """SIGKILL after the share `moment` of a run's time, and `again` of the resumed; then finish."""
    bench.whole(script)
    child, folder = bench.start(script)
    for share in (moment, again):
        if share is not None:
            time.sleep(share * bench.seconds[script])
            child.signal(signal.SIGKILL)
            assert child.wait() in (0, -signal.SIGKILL), child.printed()[-300:]
            child = bench.resume(script, folder)
    bench.finish(script, child, folder)


Fault = Callable[[Bench, str], None]
FAULTS: dict[str, Fault] = {
    **{kind: partial(broken, kind) for kind in BROKEN},
    "folder read-only at once": read_only_at_once,
    "folder removed": folder_removed,
    "two in a second": two_at_once,
    "two in a folder": two_in_a_folder,
    "second Ctrl-C": interrupted_twice,
}


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m benchmarks.faults")
    # fmt: off
    parser.add_argument("--kills", type=arguments.count, default=100, metavar="N",
        help="runs to kill, alternately trainings and searches")
    parser.add_argument("--only", default="", metavar="TEXT",
        help="only kinds of faults whose names contain TEXT")
    # fmt: on
    return parser


def planned(args: argparse.Namespace) -> Iterator[tuple[str, Fault, str]]:
    """Every fault to cause: its kind, the fault and the script."""
    for script, (name, fault) in product(SCRIPTS, FAULTS.items()):
        yield f"{script}: {name}", fault, script
    for number in range(args.kills):
        script = list(SCRIPTS)[number % len(SCRIPTS)]
        moments = random.random(), random.choice([None, random.random()])
        yield f"{script}: killed and resumed", partial(killed, *moments), script


def main(args: argparse.Namespace) -> dict[str, list[bool]]:
    """Cause the faults; whether each run held, by kind. Raises UserError unless all did."""
    held: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for kind, fault, script in planned(args):
            if args.only not in kind:
                continue
            outcome = "held"
            try:
                fault(bench, script)
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            held.setdefault(kind, []).append(outcome == "held")
            print(f"{kind}: {outcome}", flush=True)
    rows = [[kind, len(tried), sum(tried)] for kind, tried in held.items()]
    print(format_table(["kind", "tried", "held"], rows))
    outcomes = [ok for tried in held.values() for ok in tried]
    if not all(outcomes):
        raise UserError(f"{outcomes.count(False)} of {len(outcomes)} runs did not hold")
    return held


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
