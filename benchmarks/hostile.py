"""Hostile files for every reader of user input, as hypothesis strategies, and their trial."""

from __future__ import annotations

import argparse
import copy
import importlib
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from benchmarks.faults import SCRIPTS, Bench
from common import weights
from common.crossval import FoldsFile, choose_fold
from common.manifest import MANIFEST, digest, verify
from common.parsing import parse
from data import ck48, fes, jaffe
from data.folds import subject_folds
from data.reading import images
from data.sets import load_set
from data.synthetic.writers import compressed
from data.types import CLASSES, SPLITS
from engine import Run, TrainState, autocast
from runtime.errors import UserError, reading
from tools import collect
from utils import load_checkpoint

SLOW = 20.0  # seconds of CPU time after which an input counts as not held
MARKER = "payload-was-run"  # what a payload leaves in the working folder when it is run
CPU = torch.device("cpu")
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
        args = parse(script.build_parser(), ["--resume", str(path.parent)])
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
    manifest = {"w": {"file": "w.pt", "sha256": digest(Path(os.devnull))}}
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
        "manifest": Reader(MANIFEST, texts(json.dumps(manifest)),
                           lambda p: verify(p.with_name("w.pt")),
                           partial(_write_beside, "w.pt", b"")),
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
