"""The fault campaign: breaks runs and gives hostile input to readers.

    python -m benchmarks.campaign
    python -m benchmarks.campaign --kills 10 --examples 500 --only train

Kills searches and trainings at random moments; resumed, they must end as undisturbed runs do, bit
for bit. Causes every other fault in both scripts. Gives generated files to every reader of user
input: it must return a value or raise a UserError of one line within SLOW seconds, and must not
write, start or fetch anything. Prints how many were tried and held by kind, and writes the counts
with reasons as JSON. The exit status is 2 when anything did not hold.
"""

from __future__ import annotations

import argparse
import copy
import errno
import importlib
import io
import json
import os
import pickle
import pkgutil
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from itertools import chain, count, product, repeat
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock, patch

import hypothesis
import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

import genotypes
import search
import test_CK48
import train_FER2013
from auto_fernet.pictures import PictureError, centre_face, open_picture
from benchmarks.runs import Child, difference
from common import arguments, cli, weights
from common.crossval import FoldsFile, choose_fold
from common.report import format_table
from data import ck48, fes, images, jaffe
from data.cache import cache_path, read_cached
from data.folds import subject_folds
from data.sets import load_set
from data.synthetic import draw_fer2013
from data.synthetic_cross import draw_ck48
from data.types import CLASSES, SPLITS
from data.writers import compressed, write_ck48, write_csv
from engine import Run, TrainState, autocast
from tools import collect
from utils import UserError, load_checkpoint, reading, write_text

KEPT = 20  # reasons of each kind in the JSON
SLOW = 20.0  # seconds of CPU time after which an input counts as not held
MARKER = "payload-was-run"  # what a payload leaves in the working folder when it is run
CPU = torch.device("cpu")
Case = Callable[[], list[str | None]]  # tries inputs or a run: None for each that held, or why not

# Small runs that have all that a real one has: several epochs of several steps, decisions.
_COMMON = "--device cpu --report_freq 1 --limit_batches 2 --epochs 3 --model_path {out}"
SCRIPTS = {
    "train": "train_FER2013.py --data {data} --init_channels 4 --layers 1 --batch_size 8 ",
    "search": "search.py --data {data} --init_channels 4 --layers 1 --batch_size 4 "
    "--batch_increase 2 --warmup_dec_epoch 1 --decision_freq 1 --use_history ",
    "folds": "test_CK48.py --data {faces} --checkpoint {out}/train-whole --batch_size 8 --folds 2 ",
}
DISTURBED = ("train", "search")
SECOND_EPOCH = "epoch 2 step 1/"  # the line of its first step

# --- faults of runs: each raises an error when the run did not hold


class Bench:
    """A folder with small data sets, and an undisturbed run of each script."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.faces = folder, folder / "fer2013.csv", folder / "CK+48"
        write_csv(draw_fer2013(counts=dict.fromkeys(SPLITS, 14)), self.data)
        write_ck48(draw_ck48(subjects=4, sequences=14), self.faces)
        self.seconds: dict[str, float] = {}  # of the undisturbed runs
        self._numbers = count(1)

    def start(
        self, script: str, *flags: str, before: Callable[[], Any] | None = None, line: str = ""
    ) -> tuple[Child, Path]:
        """Start `script`, in a new folder unless `flags` name one, and wait until it prints `line`.

        `before` is called in its process first.
        """
        label = f"{script}-{next(self._numbers)}"
        places = {"data": self.data, "faces": self.faces, "out": self.folder}
        words = (SCRIPTS[script] + _COMMON).format(**places).split()
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
    found, printed = child.wait(), child.printed()
    last = printed.strip().split("\n")[-1]
    held = found == status and all(word in last for word in words) and "Traceback" not in printed
    assert held, f"status {found}, expected {status} with {', '.join(words)}: {printed[-400:]}"


def _replace_after(calls: int, target: str, effect: Any) -> None:
    """Let the function named `target` raise `effect`, or call it instead, after `calls` calls."""
    turns = chain(repeat(pkgutil.resolve_name(target), calls), repeat(Mock(side_effect=effect)))
    patch(target, lambda *args, **kwargs: next(turns)(*args, **kwargs)).start()


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (200 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _exhaust_memory(*_args: Any, **_kwargs: Any) -> None:
    torch.empty(1 << 50)


def _step_to_nan(optimizer: torch.optim.SGD, *_args: Any) -> None:
    optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))


_STEP = "torch.optim.SGD.step"

# What breaks a process, in time in the second step of the second epoch; what its last line says.
BROKEN: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "disk full": (
        partial(_replace_after, 8, "os.fsync", OSError(errno.ENOSPC, "No space left on device")),
        ("No space left on device", "free some room", "--resume"),
    ),
    "file size limit": (  # a checkpoint is larger
        partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000)),
        ("File too large", "ulimit -f"),
    ),
    "folder read-only in time": (
        partial(_replace_after, 8, "os.replace", OSError(errno.EROFS, "Read-only file system")),
        ("Read-only file system", "make the folder writable"),
    ),
    "loss not a number": (
        partial(_replace_after, 3, _STEP, _step_to_nan),
        ("epoch 2, step 2: ", "not finite", "--learning_rate"),
    ),
    "memory of the device": (
        partial(_replace_after, 3, _STEP, torch.cuda.OutOfMemoryError("CUDA out of memory.")),
        ("out of memory", "lower --batch_size", "--resume"),
    ),
    "memory of the machine": (_limit_memory, ("out of memory", "lower --batch_size")),
    "memory in time": (
        partial(_replace_after, 3, _STEP, _exhaust_memory),
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
    check_end(child, 2, "cannot be written", "was its folder removed?")
    assert not folder.exists(), "created again"
    bench.check_rest(script, folder)


def _stop_clock() -> None:
    patch("time.strftime", return_value="20260101-000000").start()


def two_at_once(cached: bool, bench: Bench, script: str) -> None:
    """Two runs start in one second in one parent folder, and without a cache both write it."""
    place, cache = bench.folder / f"{script}-{cached}", cache_path(bench.data)
    if not cached:
        cache.unlink(missing_ok=True)
    flags = ("--model_path", str(place))
    for child in [bench.start(script, *flags, before=_stop_clock)[0] for _ in range(2)]:
        check_end(child, 0)
    ends = [difference(folder, bench.whole(script)) for folder in place.iterdir()]
    assert ends == [None, None], ends
    before = cache.stat().st_mtime_ns
    read_cached(bench.data)
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


def stop(bench: Bench, script: str, status: int, *numbers: int) -> Path:
    """Send a run signals in its second epoch, after which it ends with `status`; its folder."""
    child, folder = bench.start(script, line=SECOND_EPOCH)
    for number in numbers:
        child.signal(number)
        time.sleep(random.random() / 20)
    check_end(child, status, "saved")
    return folder


def stopped(status: int, numbers: Sequence[int], bench: Bench, script: str) -> None:
    bench.check_rest(script, stop(bench, script, status, *numbers))


def streams_closed(bench: Bench, script: str) -> None:
    bench.finish(script, *bench.start(script, before=partial(os.closerange, 1, 3)))


def other_data(bench: Bench, script: str) -> None:
    """A run is resumed with one other label in its data: refused, then resumed with its own."""
    folder = stop(bench, script, 143, signal.SIGTERM)
    own = bench.data.read_text()
    bench.data.write_text(own.replace("\n0,", "\n1,", 1))
    try:
        check_end(bench.resume(script, folder), 2, "--data", "expected the same")
    finally:
        bench.data.write_text(own)
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
    "two in a second": partial(two_at_once, True),
    "two in a folder": two_in_a_folder,
    "cache written twice": partial(two_at_once, False),
    "second Ctrl-C": partial(stopped, 130, [signal.SIGINT, signal.SIGINT]),
    "hang-up": partial(stopped, 129, [signal.SIGHUP]),
    "streams closed": streams_closed,
    "other data": other_data,
}

# --- hostile input, as hypothesis strategies

_RANDOM = st.integers(0, 2**63).map(random.Random)
_WORDS = (bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b'\n"')


def damaged(*samples: bytes) -> SearchStrategy[bytes]:
    """One of `samples` cut near an end, or after up to six edits."""
    sample = st.sampled_from(samples)
    cuts = st.builds(lambda whole, length: whole[:length], sample, st.integers(-64, 64))
    return st.builds(_damage, sample, _RANDOM) | cuts


def _damage(sample: bytes, rng: random.Random) -> bytes:
    data = bytearray(sample)
    for _ in range(rng.randint(1, 6)):
        at, size = rng.randrange(len(data) + 1), rng.randint(1, 256)
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1])
        word, part = rng.choice(_WORDS), data[at : at + size]
        # How many bytes are replaced by what: flipped, overwritten, cut, left out, twice, inserted.
        edits = [*[(1, flipped)] * 3, (len(word), word), (len(data), b""), (size, b""), (0, part)]
        replaced, new = rng.choice([*edits, (0, bytes([size - 1]) * size)])
        data[at : at + replaced] = new
    return bytes(data)


class Payload(tuple):
    """Pickled as a call (function, *arguments), which an unsafe unpickler makes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self[0], self[1:]


PAYLOADS = tuple(map(Payload, (
    (os.system, f"mkdir {MARKER}"), (os.mkdir, MARKER), (open, MARKER, "w"),
    (os.makedirs, MARKER), (eval, f"__import__('os').mkdir({MARKER!r})"),
    (exec, f"import os; os.mkdir({MARKER!r})"), (getattr, "", "join"),
    (importlib.import_module, "antigravity"), (torch.hub.load, ".", MARKER),
    (subprocess.Popen, ["mkdir", MARKER]), (torch.load, MARKER),
    (subprocess.check_output, ["mkdir", MARKER]), (torch.save, {}, MARKER),
    (pickle.loads, pickle.dumps(Payload((os.mkdir, MARKER)))),
)))  # fmt: skip


def saved(content: Any, archive: bool = True, protocol: int = 2) -> bytes:
    """`content` as torch.save writes it: as an archive, or as before torch 1.6."""
    stream = io.BytesIO()
    torch.save(content, stream, pickle, protocol, archive)
    return stream.getvalue()


def _replace(content: Any, rng: random.Random, new: Any) -> Any:
    """A copy of nested dicts and lists with one part, at any depth, left out or `new`."""
    whole = copy.copy(content)
    key = rng.choice(list(whole) if isinstance(whole, dict) else range(len(whole)))
    if isinstance(whole[key], dict | list) and whole[key] and rng.random() < 0.7:
        whole[key] = _replace(whole[key], rng, new)
    elif rng.random() < 0.3 and not isinstance(new, Payload):
        del whole[key]
    else:
        whole[key] = new
    return whole


def _tensor(shape: list[int], kind: int) -> torch.Tensor:
    ones = torch.ones(shape)
    return (
        ones, ones.long(), ones * float("nan"), ones.to(torch.complex64), ones.bool(),
        ones.to_sparse(), torch.ones(1).expand(2**40), torch.ones((), device="meta").expand(shape),
    )[kind]  # fmt: skip


def checkpoints(content: dict[str, Any]) -> SearchStrategy[bytes]:
    """Files of `content`: damaged, with any part replaced, or with code to run."""
    numbers = st.integers(-3, 3) | st.sampled_from([2**31, 2**63 - 1, 10**30, -(2**63)])
    texts = st.text(max_size=8) | st.sampled_from(["x" * 5000, "\n", "--", "../../x", "\0"])
    tensors = st.builds(_tensor, st.lists(st.integers(0, 3), max_size=4), st.integers(0, 7))
    containers = (st.lists(numbers, max_size=3), st.dictionaries(st.text(max_size=3), numbers))
    plain = (st.none(), st.booleans(), numbers, st.floats(allow_subnormal=False), texts)
    values = st.one_of(*plain, tensors, *containers)
    forged = st.builds(_replace, st.just(content), _RANDOM, values)
    payloads, protocols = st.sampled_from(PAYLOADS), st.integers(0, 5)
    inside = st.builds(_replace, st.just(content), _RANDOM, payloads)
    alone = st.builds(pickle.dumps, payloads, protocols)
    archived = st.builds(saved, payloads, st.just(True), protocols)
    malicious = alone | archived | st.builds(saved, inside, st.booleans())
    return damaged(saved(content), saved(content, False)) | forged.map(saved) | malicious


# Words that stand where others are expected, in tables, genotypes and JSON.
_ODD = [
    "", " ", '"', "'", "\0", "-1", "7", "256", "1e9", "nan", "9" * 400, "9" * 5000, "é", "\ufeff",
    "=1+1", "Training", ",", "\r", "\n", "0 0", "7 " * 2304, "x" * 70_000, "\x1b[2J", "1e308",
    f"__import__('os').mkdir({MARKER!r})", f"open({MARKER!r}, 'w')", "().__class__", "[0] * 10**9",
    "range(0, 10**12)", "range(2, 6)", "lambda: 0", "(" * 300 + ")" * 300, "-" * 9000 + "1", "{}",
    "[('ghost', 0), ('ghost', 1)] " * 40, "None", "null", "(2, 2)", "[", "[" * 100_000, '"\\ud800"',
]  # fmt: skip


def texts(sample: str) -> SearchStrategy[bytes]:
    """`sample` damaged, or with words and separators replaced, moved or left out; odd words."""
    words = re.split(r"([^\w.+-]+)", sample)
    odd = st.sampled_from(_ODD) | st.sampled_from(words) | st.text(max_size=9)
    places = st.integers(0, len(words) - 1) | st.integers(0, min(40, len(words) - 1))
    edits = st.dictionaries(places, odd, min_size=1, max_size=6)
    changed = edits.map(lambda new: "".join(new.get(i, word) for i, word in enumerate(words)))
    alone = st.lists(odd, max_size=12).map("".join)
    whole = (changed | alone).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return whole | damaged(sample.encode())


def names() -> SearchStrategy[str]:
    """Paths of members and files: expected ones, ones outside the folder, unprintable ones."""
    good = st.from_regex(
        rf"(train|test|a/train|TRAIN)/({'|'.join(CLASSES)}|contempt|[.][.]|)/"
        rf"({'|'.join(SPLITS)}|x)_[0-3]([.]png|[.]jpg|[.]PNG||[.]png[.]zip)",
        fullmatch=True,
    )
    pieces = ["..", "/", "train", "happy", ".", "C:", "\\", "\n", "\x1b[2J", "\udcff", "a" * 300,
              "fer2013.csv", "fer2013.zip", "~", "nul", "é", " "]  # fmt: skip
    return good | st.lists(st.sampled_from(pieces), min_size=1, max_size=5).map("/".join)


def archives(suffix: str) -> SearchStrategy[bytes]:
    """Archives whose members have any name, kind, declared size and content; damaged ones."""
    file = tarfile.REGTYPE
    contents = st.sampled_from([*FACES, table().encode(), b"", b"x" * 99, bytes(3 << 20)])
    kinds = [file] * 6 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
                          tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]  # fmt: skip
    sizes = st.sampled_from([None] * 6 + [0, 7, 2**33, 2**62])
    members = st.lists(st.tuples(names(), contents, st.sampled_from(kinds), sizes), max_size=4)
    folder = [(f"train/happy/{split}_1.png", FACES[0], file, None) for split in SPLITS]
    csv = [("fer2013.csv", table().encode(), file, None)]
    whole = [pack(suffix, each) for each in (folder, csv)]
    return members.map(partial(pack, suffix)) | damaged(*whole)


def pack(suffix: str, members: Sequence[tuple[str, bytes, bytes, int | None]]) -> bytes:
    """An archive of (name, content, kind as of tar, size to declare or None for the true one)."""
    stream = io.BytesIO()
    if suffix == ".zip":
        with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as zipped:
            warnings.simplefilter("ignore")  # of names that come twice
            for name, content, kind, size in members:
                entry = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
                entry.external_attr = (0o120777 if kind == tarfile.SYMTYPE else 0o100644) << 16
                zipped.writestr(entry, content, zipfile.ZIP_DEFLATED)
                entry.file_size = entry.file_size if size is None else size
        return stream.getvalue()
    with compressed(stream, suffix) as packed:
        for name, content, kind, size in members:
            info, content = tarfile.TarInfo(name), content if kind == tarfile.REGTYPE else b""
            info.type, info.linkname = kind, "../../etc/passwd"
            info.size = len(content) if size is None else size
            packed.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
        packed.write(bytes(1024))
    return stream.getvalue()


# --- valid files


def pixels(seed: int = 0) -> np.ndarray:
    """Random grays, uint8 (48, 48)."""
    return np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """An image file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


FACES = [encoded(Image.fromarray(pixels(seed)), "PNG") for seed in range(2)]


def image_samples() -> list[bytes]:
    """Images of 48x48 in every form and mode that users have, and larger ones that inflate."""
    gray, turned = Image.fromarray(pixels()), Image.Exif()
    turned[0x0112] = 6
    wide = Image.fromarray(np.zeros((9000, 9000), np.uint8))
    deep = Image.fromarray(pixels().astype(np.uint16) * 257)
    return [
        *(encoded(gray, form) for form in ("PNG", "JPEG", "TIFF", "BMP", "GIF")),
        *(encoded(gray.convert(mode), "PNG") for mode in ("RGBA", "LA", "1")),
        encoded(gray.convert("P"), "PNG", transparency=3),
        *(encoded(deep, form) for form in ("PNG", "TIFF")),
        encoded(Image.fromarray(np.float32(pixels()) / 255), "TIFF"),
        encoded(gray.convert("CMYK"), "JPEG"),
        encoded(gray, "JPEG", exif=turned),
        encoded(wide, "PNG"),
        encoded(wide, "TIFF", compression="tiff_adobe_deflate"),
        encoded(gray, "GIF", save_all=True, append_images=[gray] * 3),
    ]


def table() -> str:
    """A small fer2013.csv."""
    row = " ".join(map(str, pixels().flatten().tolist()))
    lines = [f"{label},{row},{split}" for label, split in enumerate(SPLITS)]
    return "\n".join(["emotion,pixels,Usage", *lines])


# --- readers of user input


class Reader(NamedTuple):
    """A reader: the name of its file, hostile inputs, how it reads, and how inputs are written."""

    file: str
    inputs: SearchStrategy[Any]
    read: Callable[[Path], Any]
    write: Callable[[Path, Any], Any] = Path.write_bytes


def checkpoint_readers(bench: Bench) -> dict[str, Reader]:
    """The readers of what runs leave; the inputs derive from undisturbed runs."""
    whole = {script: bench.whole(script) for script in SCRIPTS}
    start = whole["train"] / weights.CHOSEN
    trained = torch.load(start, weights_only=True)
    training, searched, folds = (
        torch.load(each / "checkpoint.pt", weights_only=True) for each in whole.values()
    )
    names = ("state_dict", "average", "optimizer", "state")
    folds["under_way"] = {name: training[name] for name in names}
    faces = ck48.load_ck48(bench.faces)

    def resume(script: Any, kind: str, path: Path) -> tuple[argparse.Namespace, Run, Any]:
        args = cli.parse(script.build_parser(), ["--resume", str(path.parent)])
        found = load_checkpoint(path, [kind])
        run = Run(path.parent, CPU, autocast(CPU, "off"), resumed=found)
        run.inputs = found.get("inputs", {})
        return args, run, found

    def read_training(path: Path) -> None:
        args, run, found = resume(train_FER2013, "training", path)
        model, drop_path = weights.resume_network(run, CLASSES, args)
        with reading(path):  # as run_script tells what fails in a resumed run
            TrainState(model, args, drop_path).load_state_dict(found, path)

    def read_search(path: Path) -> None:
        args, run, found = resume(search, "search", path)
        with reading(path):
            model = weights.rebuild_supernet(found["model"], found["state_dict"], path)
            search.SearchState(model, args, run.precision).load_state_dict(found, path)

    def read_folds(path: Path) -> None:
        args, run, _ = resume(test_CK48, "folds", path)
        from_start = weights.load_trained(start)
        file = FoldsFile(args, run)
        chosen = subject_folds(faces.subjects, faces.labels, args.folds, args.seed)
        file.check_done(list(choose_fold(chosen, args).values()))
        if file.under_way is not None:
            train = TrainState(from_start.model, args, from_start.drop_path(args))
            train.load_state_dict(file.under_way, path)

    summary = (whole["train"] / "summary.json").read_text()
    sizes = {"layers": trained["model"]["layers"], "init_channels": trained["model"]["C"]}
    read_bare, name = partial(weights.load_trained, **sizes), "checkpoint.pt"
    return {
        "weights": Reader("w.pt", checkpoints(trained), weights.load_trained),
        "bare weights": Reader("w.pt", checkpoints(dict(trained["state_dict"])), read_bare),
        "a training to resume": Reader(name, checkpoints(training), read_training),
        "a search to resume": Reader(name, checkpoints(searched), read_search),
        "folds to resume": Reader(name, checkpoints(folds), read_folds),
        "summary": Reader("summary.json", texts(summary), _collect),
    }


def _collect(path: Path) -> None:
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):  # must be valid UTF-8
        collect.main(collect.build_parser().parse_args([str(path.parent)]))


def _read_face(path: Path) -> None:
    try:
        found = centre_face(open_picture(path))
    except PictureError as error:  # as tools.predict tells it
        raise UserError(str(error)) from error
    assert (found.shape, found.dtype) == ((48, 48), np.uint8), (found.shape, found.dtype)


def _write_beside(name: str, other: bytes, path: Path, content: bytes) -> None:
    path.with_name(name).write_bytes(other)
    path.write_bytes(content)


def _cache() -> bytes:
    """The cache of `table()`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fer2013.csv"
        path.write_text(table())
        _read_cache(path)
        return cache_path(path).read_bytes()


def _read_cache(path: Path) -> None:
    with patch("data.cache.fingerprint", lambda _: "of this table"):
        found = read_cached(path.with_name("fer2013.csv"))
    same = found.images[1] == pixels()
    assert (same.all(), found.labels.tolist()) == (True, [0, 1, 2]), "not as in the source"


def _write_tree(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files` below `folder`, without those whose names are impossible there."""
    folder.mkdir()
    for name, content in files.items():
        path = Path(os.path.normpath(folder / name.lstrip("/")))
        if folder in path.parents:
            with suppress(OSError, ValueError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def _read_folder(path: Path) -> None:
    for load in (ck48.load_ck48, jaffe.load_jaffe, load_set):
        with suppress(UserError):
            load(path)


def file_readers() -> dict[str, Reader]:
    """The readers of data sets, pictures, tables and texts."""
    faces = damaged(*(samples := image_samples()))
    trees = st.dictionaries(names(), st.sampled_from([*samples, *FACES, b"", b"x"]))
    similar = pd.DataFrame(fes.TRAINING_FES, CLASSES, CLASSES).to_csv()
    header = ",".join(("Usage", "Image name", *fes.VOTES_OF_CLASSES))
    votes = "\n".join([header, *(f"{split},x.png,1,0,2,0,0,3,4" for split in SPLITS)])
    genotype = genotypes.format_genotype(genotypes.Auto_FERNet)
    manifest = {"w": {"file": "w.pt", "sha256": weights.digest(Path(os.devnull))}}
    # fmt: off
    return {
        "table": Reader("fer2013.csv", texts(table()), load_set),
        **{
            f"archive {suffix}": Reader(f"f{suffix}", archives(suffix), load_set)
            for suffix in (".zip", ".tar", ".tar.gz", ".tar.xz")
        },
        "image": Reader("i.png", faces, lambda p: images.decode_image(p, str(p))),
        "picture": Reader("i.png", faces, _read_face),
        "image of JAFFE": Reader("KA.AN1.39.tiff", faces,
                                 lambda p: jaffe.load_jaffe(p.parent)),
        "folder": Reader("set", trees, _read_folder, _write_tree),
        "votes": Reader("v.csv", texts(votes), fes.load_votes),
        "similarities": Reader("f.csv", texts(similar), fes.load_fes),
        "genotype": Reader("g.txt", texts(genotype), genotypes.load_genotype),
        "manifest": Reader(weights.MANIFEST, texts(json.dumps(manifest)),
                           lambda p: weights.verify(p.with_name("w.pt")),
                           partial(_write_beside, "w.pt", b"")),
        "cache": Reader("fer2013.csv.cache.npz", damaged(_cache()), _read_cache,
                        partial(_write_beside, "fer2013.csv", table().encode())),
    }
    # fmt: on


_started: list[str] = []  # by the code under test, as the audit hook sees it


def _audit(event: str, _args: Any) -> None:
    if event.startswith(("os.system", "os.exec", "subprocess.", "socket.connect", "webbrowser.")):
        _started.append(event)


sys.addaudithook(_audit)


def fault_of(reader: Reader, value: Any) -> str | None:
    """Read `value` as a file in a new folder; None when it held, else why not."""
    reason, before = None, os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reader.write(folder / reader.file, value)
        files, started = set(folder.rglob("*")), time.process_time()
        _started.clear()
        os.chdir(folder)
        try:
            reader.read(folder / reader.file)
        except UserError as error:
            if not str(error).isprintable():
                reason = f"an error of more than a line: {error}"
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"[-300:]
        finally:
            os.chdir(before)
        seconds, new = time.process_time() - started, set(folder.rglob("*")) - files
    did = [*_started, *(str(path) for path in new if not path.name.endswith(".cache.npz"))]
    if did:
        return f"it did more than read: {did}"
    return f"{seconds:.0f} s of CPU time" if seconds > SLOW else reason


def try_inputs(reader: Reader, count: int, seed: int) -> list[str | None]:
    """For about `count` generated inputs None, or why the input did not hold and its beginning."""
    reasons: list[str | None] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(reader.inputs)
    def each(value: Any) -> None:
        reason = fault_of(reader, value)
        reasons.append(reason and f"{reason}; {str(value)[:200]}")

    each()
    return reasons


# --- the command


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m benchmarks.campaign")
    # fmt: off
    add = parser.add_argument
    add("--kills", type=arguments.count, default=100, metavar="N",
        help="runs to kill, alternately searches and trainings")
    add("--examples", type=arguments.count, default=12_000, metavar="N",
        help="generated inputs over all readers")
    add("--only", default="", metavar="TEXT", help="only kinds whose names contain TEXT")
    add("--seed", type=arguments.count, default=0, metavar="N",
        help="seed of the moments of kills and of the inputs")
    add("--out", default="faults.json", metavar="FILE", help="where the JSON is written")
    # fmt: on
    return parser


def cases(args: argparse.Namespace, bench: Bench) -> Iterator[tuple[str, Case]]:
    """Every case of the campaign, with its kind."""
    readers = {**checkpoint_readers(bench), **file_readers()} if args.examples else {}
    for name, reader in readers.items():
        examples = args.examples // len(readers)
        yield f"input: {name}", partial(try_inputs, reader, examples, args.seed)
    for script, (name, fault) in product(DISTURBED, FAULTS.items()):
        yield f"{script}: {name}", partial(_try_fault, fault, bench, script)
    rng = random.Random(args.seed)
    for number in range(args.kills):
        script = DISTURBED[number % len(DISTURBED)]
        kill = partial(killed, rng.random(), rng.choice([None, rng.random()]))
        yield f"{script}: killed and resumed", partial(_try_fault, kill, bench, script)


def _try_fault(fault: Fault, bench: Bench, script: str) -> list[str | None]:
    try:
        fault(bench, script)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return [None]


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the campaign; returns the counts. Raises UserError when anything did not hold."""
    counts: dict[str, dict[str, Any]] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for kind, case in cases(args, Bench(Path(folder))):
            if args.only not in kind:
                continue
            results = case()
            reasons = [reason for reason in results if reason is not None]
            row = counts.setdefault(kind, {"tried": 0, "held": 0, "reasons": []})
            row["tried"] += len(results)
            row["held"] += len(results) - len(reasons)
            row["reasons"] = [*row["reasons"], *reasons][:KEPT]
            seconds = time.monotonic() - started
            line = f"{seconds:6.0f} s  {kind}: {row['held']} of {row['tried']} held"
            print("\n    ".join([line, *reasons[:3]]), flush=True)
    table = [[kind, row["tried"], row["held"]] for kind, row in counts.items()]
    tried, held = (sum(row[column] for row in table) for column in (1, 2))
    print(format_table(["kind", "tried", "held"], [*table, ["all", tried, held]]))
    report = {"seed": args.seed, "seconds": time.monotonic() - started, "counts": counts}
    write_text(args.out, json.dumps(report, indent=2) + "\n")
    if tried > held:
        raise UserError(f"{tried - held} of {tried} did not hold; see {args.out}")
    return report


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
