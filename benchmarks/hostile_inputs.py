"""What strangers' files may hold, as hypothesis strategies: damaged, forged, and malicious ones."""

from __future__ import annotations

import builtins
import importlib
import io
import json
import os
import pickle
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from data.readers import CLASSES, SPLITS
from genotypes import EXTRA_PRIMITIVES, PRIMITIVES

# Of an archive: name, content, kind as of tar, and the size it declares unless None.
Member = tuple[str, bytes, bytes, int | None]
# What a payload leaves in the working folder when anything of it is run.
MARKER = "payload-was-run"

# ---------------------------------------------------------------- bytes

_WORDS = (
    b"\0" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\n",
    b'"',
)


def damaged(samples: Sequence[bytes]) -> SearchStrategy[bytes]:
    """One of `samples` after a few edits: bits flipped, parts cut, copied, moved or overwritten."""
    edit = st.tuples(
        st.sampled_from(["flip", "flip", "flip", "set", "cut", "drop", "double", "word", "insert"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    )
    edits = st.lists(edit, min_size=1, max_size=6)
    return st.builds(_edited, one_of_many(samples), edits)


def one_of_many(values: Sequence[Any]) -> SearchStrategy[Any]:
    """One of `values`, which hypothesis need not print."""
    return st.integers(0, len(values) - 1).map(values.__getitem__)


def _edited(sample: bytes, edits: Sequence[tuple[str, float, int]]) -> bytes:
    data = bytearray(sample)
    for kind, where, value in edits:
        at = int(where * len(data))
        if not data:
            break
        if kind == "flip":
            data[at] ^= 1 << value % 8
        elif kind == "set":
            data[at] = value
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + 1 + value]
        elif kind == "double":
            data[at:at] = data[at : at + 1 + value]
        elif kind == "word":
            word = _WORDS[value % len(_WORDS)]
            data[at : at + len(word)] = word
        else:
            data[at:at] = bytes([value]) * (1 + value)
    return bytes(data)


# ---------------------------------------------------------------- checkpoints


class Payload:
    """Pickles as a call of `function`, which whoever unpickles carelessly makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


PAYLOADS = (
    Payload(os.system, f"mkdir {MARKER}"),
    Payload(os.mkdir, MARKER),
    Payload(os.makedirs, MARKER),
    Payload(builtins.eval, f"__import__('os').mkdir({MARKER!r})"),
    Payload(builtins.exec, f"import os; os.mkdir({MARKER!r})"),
    Payload(builtins.open, MARKER, "w"),
    Payload(builtins.getattr, "", "join"),
    Payload(subprocess.Popen, ["mkdir", MARKER]),
    Payload(subprocess.check_output, ["mkdir", MARKER]),
    Payload(importlib.import_module, "antigravity"),
    Payload(torch.load, MARKER),
    Payload(torch.save, {}, MARKER),
    Payload(torch.hub.load, ".", MARKER),
    Payload(pickle.loads, pickle.dumps(Payload(os.mkdir, MARKER))),
)


def malicious(content: dict[str, Any]) -> SearchStrategy[bytes]:
    """Files with a payload: as a pickle, and anywhere in `content` as torch saves it."""
    payload = st.sampled_from(PAYLOADS)
    plain = st.builds(lambda p, v: pickle.dumps(p, protocol=v), payload, st.integers(0, 5))
    inside = payload.flatmap(lambda p: _replaced(content, st.just(p)))
    return plain | st.builds(saved, inside, st.booleans()) | st.builds(_in_archive, plain)


def saved(content: Any, archive: bool = True) -> bytes:
    """`content` as torch.save writes it, as an archive or as before torch 1.6."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=archive)
    return stream.getvalue()


def _in_archive(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return stream.getvalue()


def _tensors() -> SearchStrategy[Any]:
    def build(shape: list[int], kind: int) -> torch.Tensor:
        tensor = torch.ones(shape)
        return (
            tensor,
            tensor.long(),
            tensor * float("nan"),
            tensor.to(torch.complex64),
            tensor.to_sparse() if shape else tensor.bool(),
            torch.ones(1).expand(2**40),  # a terabyte, declared
            torch.ones((), device="meta").expand(shape),
        )[kind]

    return st.builds(build, st.lists(st.integers(0, 3), max_size=4), st.integers(0, 6))


def _leaves() -> SearchStrategy[Any]:
    numbers = st.integers(-3, 3) | st.sampled_from([2**31, 2**63 - 1, 10**30, -(2**63)])
    texts = st.text(max_size=8) | st.sampled_from(["x" * 5000, "\n", "--", "../../x", "\0"])
    return st.one_of(
        st.none(), st.booleans(), numbers, st.floats(), texts, st.just([]), st.just({}),
        st.lists(numbers, max_size=3), st.dictionaries(st.text(max_size=3), numbers, max_size=2),
        _tensors(),
    )  # fmt: skip


def forged(content: dict[str, Any]) -> SearchStrategy[bytes]:
    """`content` as torch saves it, one part of it left out or something else."""
    return st.builds(saved, _replaced(content, _leaves()))


def _replaced(content: Any, junk: SearchStrategy[Any]) -> SearchStrategy[Any]:
    paths = [path for path in _paths(content) if path]
    lengths = sorted({len(path) for path in paths})
    # As often near the root as in the many leaves.
    path = st.sampled_from(lengths).flatmap(
        lambda n: one_of_many([path for path in paths if len(path) == n])
    )
    return st.builds(lambda path, new, drop: _put(content, path, new, drop), path, junk,
                     st.sampled_from([False, False, True]))  # fmt: skip


def _paths(node: Any) -> list[tuple[Any, ...]]:
    parts = node.items() if isinstance(node, dict) else enumerate(node)
    deeper = (dict, list)
    return [()] + [
        (key, *rest)
        for key, value in parts
        for rest in (_paths(value) if isinstance(value, deeper) else [()])
    ]


def _put(node: Any, path: tuple[Any, ...], new: Any, drop: bool) -> Any:
    key, *rest = path
    copy = dict(node) if isinstance(node, dict) else list(node)
    if rest:
        copy[key] = _put(node[key], tuple(rest), new, drop)
    elif drop and not isinstance(new, Payload):
        del copy[key]
    else:
        copy[key] = new
    return copy


# ---------------------------------------------------------------- tables, archives, folders

_ODD = st.sampled_from(
    ["", " ", '"', "\0", "-1", "7", "256", "1e9", "nan", "9" * 400, "é", "\ufeff", "=1+1",
     "Training", "0", "3", "'", ",", "\r", "\n", "0 0", "7 " * 2304, "x" * 70_000]
)  # fmt: skip


def tables(header: Sequence[str]) -> SearchStrategy[bytes]:
    """CSV tables of odd fields, most of them below `header`."""
    row = st.lists(_ODD | st.text(max_size=4), max_size=len(header) + 1)
    first = st.just(list(header)) | st.permutations(header) | row
    rows = st.lists(row, max_size=4)
    return st.builds(
        lambda first, rows: "\n".join(map(",".join, [first, *rows])).encode("utf-8", "replace"),
        first, rows,
    )  # fmt: skip


def names() -> SearchStrategy[str]:
    """Paths of members and files: those of the folder form, outside ones, and unprintable ones."""
    good = st.builds(
        "{}/{}/{}_{}{}".format,
        st.sampled_from(["train", "test", "a/train", "TRAIN"]),
        st.sampled_from([*CLASSES, "contempt", "..", ""]),
        st.sampled_from([*SPLITS, "x"]),
        st.integers(0, 3),
        st.sampled_from([".png", ".jpg", ".PNG", "", ".png.zip"]),
    )
    piece = st.sampled_from(
        ["..", "/", "train", "happy", ".", "C:", "\\", "\n", "\x1b[2J", "\udcff", "a" * 300,
         "fer2013.csv", "fer2013.zip", "~", "nul", "é", " "]
    )  # fmt: skip
    odd = st.lists(piece, min_size=1, max_size=5).map("/".join)
    return good | odd


def archives(images: Sequence[bytes], table: bytes, suffix: str) -> SearchStrategy[bytes]:
    """Archives whose members have any name, kind, declared size and content."""
    content = one_of_many([*images, table, b"", b"x" * 99, bytes(3 << 20)])
    odd = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
           tarfile.GNUTYPE_SPARSE]  # fmt: skip
    kind = st.sampled_from([tarfile.REGTYPE] * 6 + odd)
    size = st.sampled_from([None] * 6 + [0, 7, 2**33, 2**62])
    member = st.tuples(names(), content, kind, size)
    return st.lists(member, max_size=4).map(archive_of(suffix))


def archive_of(suffix: str) -> Callable[[Sequence[Member]], bytes]:
    """What packs members into an archive of this suffix."""
    return _zip if suffix == ".zip" else lambda members: _tar(members, suffix)


def _zip(members: Sequence[Member]) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content, kind, _ in members:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
            info.external_attr = (0o120777 if kind == tarfile.SYMTYPE else 0o100644) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    data = stream.getvalue()
    for name, content, _, size in members:
        if size is not None:  # declared otherwise than it is
            real, told = len(content).to_bytes(4, "little"), (size % 2**32).to_bytes(4, "little")
            start = data.find(b"PK\1\2" if len(name) % 2 else b"PK\3\4")
            at = data.find(real, start)
            data = data if at < 0 else data[:at] + told + data[at + 4 :]
    return data


def _tar(members: Sequence[Member], suffix: str) -> bytes:
    stream = io.BytesIO()
    mode = {".tar": "w", ".tar.gz": "w:gz", ".tar.xz": "w:xz"}[suffix]
    options = {".tar.gz": {"compresslevel": 1}, ".tar.xz": {"preset": 0}}.get(suffix, {})
    with tarfile.open(fileobj=stream, mode=mode, **options) as archive:
        for name, content, kind, size in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../etc/passwd"
            if kind == tarfile.REGTYPE:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if member.size else None)
            if size is not None:  # a header that declares what does not follow
                member.size = size
                archive.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
                archive.offset += tarfile.BLOCKSIZE
    return stream.getvalue()


def trees(images: Sequence[bytes]) -> SearchStrategy[dict[str, bytes]]:
    """Folders as {path: content}; a path outside the folder is for `write_tree` to leave out."""
    return st.dictionaries(names(), one_of_many([*images, b"", b"x"]), max_size=5)


# ---------------------------------------------------------------- genotypes


def genotype_texts(samples: Sequence[str]) -> SearchStrategy[bytes]:
    """Texts near to a literal Genotype(...): damaged, nested, repeated, or with code inside."""
    code = st.sampled_from(
        [f"__import__('os').mkdir({MARKER!r})", f"open({MARKER!r}, 'w')", "().__class__",
         "[0] * 10**9", "range(0, 10**12)", "lambda: 0", "(" * 300 + ")" * 300, "-" * 9000 + "1",
         "9" * 5000, "[('ghost', 0), ('ghost', 1)] " * 3, "{}", "None", "(2, 2)", "range(2, 6)"]
    )  # fmt: skip
    call = st.builds("Genotype(normal={}, normal_concat={}, reduce={}, reduce_concat={})".format,
                     *[code | _edges().map(repr)] * 4)  # fmt: skip
    plain = damaged([sample.encode() for sample in samples])
    return plain | call.map(str.encode) | code.map(str.encode) | st.text(max_size=40).map(
        lambda text: text.encode("utf-8", "surrogatepass"))  # fmt: skip


def _edges() -> SearchStrategy[list[tuple[str, int]]]:
    known = st.sampled_from([*PRIMITIVES, *EXTRA_PRIMITIVES, "shuffle"])
    return st.lists(st.tuples(known, st.integers(-1, 6)), max_size=70)


def json_texts(samples: Sequence[Any]) -> SearchStrategy[bytes]:
    """JSON of any depth and content, and `samples` damaged or with something else in them."""
    odd = st.sampled_from([10**400, 10**8, -1, 2**63, 1e308, "\ud800", "\x1b[2J\n", "x" * 5000])
    leaf = odd | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    nested = st.recursive(leaf, lambda c: st.lists(c, max_size=4) | st.dictionaries(
        st.text(max_size=5), c, max_size=4), max_leaves=12)  # fmt: skip
    deep = st.integers(1, 100_000).map(lambda depth: b"[" * depth)
    whole = [json.dumps(sample).encode() for sample in samples]
    changed = one_of_many(samples).flatmap(lambda sample: _replaced(sample, nested))
    return damaged(whole) | deep | (nested | changed).map(lambda value: json.dumps(value).encode())
