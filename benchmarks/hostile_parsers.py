"""The parsers of the project, with valid samples of what each reads and how it is called."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis.strategies import SearchStrategy
from PIL import Image

import model_search
import search
import test_CK48
import train_FER2013
from benchmarks import hostile_inputs as inputs
from benchmarks.hostile import Parser, unwatched
from common import cli
from common.checkpoints import (
    check_edges,
    load_optimizer,
    parts_of,
    rebuild_supernet,
    restore_state,
    resume_training,
)
from common.crossval import FoldsFile, check_done, resume_fold
from common.manifest import MANIFEST, verify
from common.weights import load_trained
from data.cache import cache_path, read_cached
from data.ck48 import load_ck48
from data.fer2013 import load_fer2013
from data.fes import VOTES_OF_CLASSES, load_fes, load_votes
from data.images import decode_image
from data.jaffe import load_jaffe
from data.pictures import load_picture
from data.readers import CLASSES, COLUMNS, SPLITS, read_set
from engine import TrainState
from genotypes import Auto_FERNet, check_genotype, format_genotype, load_genotype
from model import build_network
from search import SearchState
from tools import collect
from utils import CHECKPOINT_FORMAT, UserError, load_checkpoint

SIZE = {"C": 1, "num_classes": 7, "layers": 3}
FOLD_INPUTS = {"checkpoint": "a digest", "data": "another"}

# ---------------------------------------------------------------- valid samples


def weights_content() -> dict[str, Any]:
    """A whole checkpoint of weights, of the smallest network there is."""
    torch.manual_seed(0)
    description = {**SIZE, "auxiliary": False, "genotype": format_genotype(Auto_FERNet)}
    return {
        "format": CHECKPOINT_FORMAT, "kind": "weights", "torch": "", "model": description,
        "state_dict": dict(build_network(description).state_dict()), "epoch": 1, "epochs": 3,
        "drop_path_prob": 0.2, "start_epoch": 0, "metrics": {"epoch": 1},
    }  # fmt: skip


def _bare() -> dict[str, Any]:
    return weights_content()["state_dict"]


def _training() -> dict[str, Any]:
    weights = weights_content()
    model = build_network(weights["model"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    record = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 9.0, "seconds": 0.1}
    return {
        **weights, "kind": "training", "optimizer": _stepped(model, optimizer),
        "state": TrainState(1, 2, history=[record]).to_dict(),
        "args": vars(train_FER2013.build_parser().parse_args([])),
    }  # fmt: skip


def _search() -> dict[str, Any]:
    torch.manual_seed(0)
    description = {**SIZE, "layers": 1}  # a cell is large enough
    model = model_search.Network(**description)
    record = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 9.0, "seconds": 0.1}
    past = {cell: [torch.ones(14, 10) / 10] for cell in model_search.CELLS}
    decisions = [{"epoch": 1, "cell": "normal", "edge": 0, "primitive": "ghost", "pruned": []}]
    return {
        "format": CHECKPOINT_FORMAT, "kind": "search", "torch": "", "model": description,
        "state_dict": dict(model.state_dict()), "edges": model.states,
        "optimizer": {"state": {}, "param_groups": []},
        "alphas_optimizer": _stepped(model, torch.optim.Adam(model.arch_parameters())),
        "state": SearchState(1, 0, history=[record], past=past, decisions=decisions).to_dict(),
        "args": vars(search.build_parser().parse_args([])),
    }  # fmt: skip


def _folds() -> dict[str, Any]:
    training, done = _training(), torch.arange(2)
    numbers = ("accuracy", "oracle", "seconds", "subjects_shared", "sequences_shared")
    result = {"logits": torch.ones(2, len(CLASSES)), "test_index": done}
    result |= dict.fromkeys(numbers, 1.0)
    under_way = {name: training[name] for name in ("state_dict", "optimizer", "state")}
    return {
        "format": CHECKPOINT_FORMAT, "kind": "folds", "torch": "", "inputs": dict(FOLD_INPUTS),
        "folds": [result], "under_way": {**under_way, "average": None},
        "args": vars(test_CK48.build_parser().parse_args(["--checkpoint", "w.pt"])),
    }  # fmt: skip


def _manifest() -> dict[str, Any]:
    return {"w": {"file": "w.pt", "sha256": hashlib.sha256(b"").hexdigest()}}


def _summary() -> dict[str, Any]:
    figures = {"PublicTest": {"accuracy": 60.0, "images": 7}}
    return {"script": "train_FER2013.py", "seed": 0, "genotype": "g", "figures": figures,
            "details": {"fold": 1, "folds": 2}}  # fmt: skip


def _stepped(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def _pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """An image file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def image_samples() -> list[bytes]:
    """Images of 48x48 in every form and mode that users have, and bombs of them."""
    gray = Image.fromarray(_pixels())
    palette = gray.convert("P")
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = Image.fromarray(np.zeros((9000, 9000), np.uint8))
    return [
        *(encoded(gray, form) for form in ("PNG", "JPEG", "TIFF", "BMP", "GIF")),
        encoded(palette, "PNG", transparency=3),
        encoded(Image.merge("LA", (gray, gray)), "PNG"),
        encoded(gray.convert("RGBA"), "PNG"),
        encoded(Image.fromarray(_pixels().astype(np.uint16) * 257), "PNG"),
        encoded(Image.fromarray(_pixels().astype(np.uint16) * 257), "TIFF"),
        encoded(Image.fromarray(np.float32(_pixels()) / 255), "TIFF"),
        encoded(gray.convert("CMYK"), "JPEG"),
        encoded(gray.convert("1"), "PNG"),
        encoded(gray, "JPEG", exif=turned),
        encoded(wide, "PNG"),
        encoded(wide, "TIFF", compression="tiff_adobe_deflate"),
        encoded(gray, "GIF", save_all=True, append_images=[gray] * 3),
    ]


def _table() -> bytes:
    row = " ".join(map(str, _pixels().flatten().tolist()))
    lines = [f"{label},{row},{split}" for label, split in enumerate(SPLITS)]
    return "\n".join([",".join(COLUMNS), *lines]).encode()


def _images() -> list[bytes]:
    return [encoded(Image.fromarray(_pixels(seed)), "PNG") for seed in range(2)]


def _archives(suffix: str) -> SearchStrategy[bytes]:
    whole = [
        (
            f"{'test' if split != 'Training' else 'train'}/happy/{split}_1.png",
            _images()[0],
            b"0",
            None,
        )
        for split in SPLITS
    ]
    pack = inputs.archive_of(suffix)
    samples = [pack(whole), pack([("fer2013.csv", _table(), b"0", None)])]
    return inputs.archives(_images(), _table(), suffix) | inputs.damaged(samples)


def _votes() -> list[bytes]:
    header = ",".join(("Usage", "Image name", *VOTES_OF_CLASSES))
    return ["\n".join([header, *(f"{s},x.png,1,0,2,0,0,3,4" for s in SPLITS)]).encode()]


def _fes() -> list[bytes]:
    rows = [f"{name},{','.join('1' if i == k else '0.5' for k in range(7))}"
            for i, name in enumerate(CLASSES)]  # fmt: skip
    return ["\n".join(["," + ",".join(CLASSES), *rows]).encode()]


# ---------------------------------------------------------------- the parsers


def _read_weights(path: Path) -> None:
    load_trained(path, layers=None, init_channels=None, arch=None)


def _read_bare(path: Path) -> None:
    load_trained(path, layers=SIZE["layers"], init_channels=SIZE["C"], arch=None)


def _read_training(path: Path) -> None:
    cli.parse(train_FER2013.build_parser(), ["--resume", str(path.parent)])
    found, model, _ = resume_training(path.parent)
    load_optimizer(torch.optim.SGD(model.parameters(), 0.1), found, path)


def _read_search(path: Path) -> None:
    cli.parse(search.build_parser(), ["--resume", str(path.parent)])
    found = load_checkpoint(path, ["search"])
    with parts_of(path):
        restore_state(SearchState, found["state"])
        model = rebuild_supernet(found["model"], found["state_dict"], path)
        check_edges(found["edges"])
        model.set_states(**found["edges"])
    adam = torch.optim.Adam(model.arch_parameters())
    load_optimizer(adam, found, path, "alphas_optimizer")


class _Folds(FoldsFile):
    """A file of folds that is read alone."""

    def save(self, under_way: dict[str, Any] | None) -> None:
        self.under_way = under_way


def _read_folds(path: Path) -> None:
    args = cli.parse(test_CK48.build_parser(), ["--resume", str(path.parent)])
    file = _Folds(path.parent, vars(args), FOLD_INPUTS)
    with parts_of(path):
        check_done(file.done, [(torch.arange(2), torch.arange(2))], len(CLASSES))
    model = build_network(weights_content()["model"])
    resume_fold(model, torch.optim.SGD(model.parameters(), 0.1), None, file.under_way, path)


def _checkpoints(content: Callable[[], dict[str, Any]]) -> Callable[[], SearchStrategy[bytes]]:
    return lambda: (
        inputs.damaged([inputs.saved(content()), inputs.saved(content(), archive=False)])
        | inputs.forged(content())
        | inputs.malicious(content())
    )


def _set_reader(path: Path) -> None:
    read_set(path, lambda _line: None)


def _read_image(path: Path) -> None:
    with path.open("rb") as stream:
        found = decode_image(stream, path.stat().st_size, str(path))
    if found.shape != (48, 48) or found.dtype != np.uint8:
        raise AssertionError(f"{found.dtype} {found.shape}")


def _read_picture(path: Path) -> None:
    if load_picture(path).shape != (48, 48):
        raise AssertionError("another shape")


def _write_manifest(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    (path.parent / "w.pt").write_bytes(b"")


def _verify(path: Path) -> None:
    verify(path.parent / "w.pt")


def _collect(path: Path) -> None:
    # What is printed must be text that a terminal takes.
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        collect.main(collect.build_parser().parse_args([str(path.parent)]))


def _write_cached(path: Path, content: bytes) -> None:
    """A table, and `content` in the place of its cache."""
    path.write_bytes(_table())
    os.utime(path, ns=(0, 0))
    cache_path(path).write_bytes(content)


def _caches() -> SearchStrategy[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fer2013.csv"
        _write_cached(path, b"")
        read_cached(path, lambda _line: None)
        whole = cache_path(path).read_bytes()
    return inputs.damaged([whole])


def _read_cache(path: Path) -> None:
    with unwatched():  # what it may do is write the cache
        found = read_cached(path, lambda _line: None)
    if found.images[1].tolist() != _pixels().tolist() or found.labels.tolist() != [0, 1, 2]:
        raise AssertionError("other images than those of the source")


def write_tree(folder: Path, files: dict[str, bytes]) -> None:
    """The files below `folder`, as far as they have names that a file can have there."""
    folder.mkdir()
    for name, content in files.items():
        path = Path(os.path.normpath(folder / name.lstrip("/")))
        if folder in path.parents:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except (OSError, ValueError):  # no name for this file system
                continue


def _read_folders(path: Path) -> None:
    for load in (load_ck48, load_jaffe, load_fer2013):
        try:
            load(path)
        except UserError as error:
            last = error
    raise last


def _jaffe_trees() -> SearchStrategy[dict[str, bytes]]:
    return inputs.trees([*_images(), *image_samples()])


def _read_json(path: Path) -> None:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    check_genotype(value)


PARSERS = {
    "weights": Parser("w.pt", _checkpoints(weights_content), _read_weights),
    "bare weights": Parser(
        "w.pt", _checkpoints(lambda: weights_content()["state_dict"]), _read_bare
    ),
    "a training to resume": Parser("checkpoint.pt", _checkpoints(_training), _read_training),
    "a search to resume": Parser("checkpoint.pt", _checkpoints(_search), _read_search),
    "folds to resume": Parser("checkpoint.pt", _checkpoints(_folds), _read_folds),
    "table": Parser(
        "fer2013.csv", lambda: inputs.tables(COLUMNS) | inputs.damaged([_table()]), _set_reader
    ),
    **{
        f"archive {suffix}": Parser(f"f{suffix}", lambda s=suffix: _archives(s), _set_reader)
        for suffix in (".zip", ".tar", ".tar.gz", ".tar.xz")
    },
    "image": Parser("i.png", lambda: inputs.damaged(image_samples()), _read_image),
    "picture": Parser("i.png", lambda: inputs.damaged(image_samples()), _read_picture),
    "image of JAFFE": Parser(
        "KA.AN1.39.tiff", lambda: inputs.damaged(image_samples()), lambda p: load_jaffe(p.parent)
    ),
    "folder": Parser("set", _jaffe_trees, _read_folders, write_tree),
    "votes": Parser(
        "v.csv",
        lambda: inputs.tables(["Usage", *VOTES_OF_CLASSES]) | inputs.damaged(_votes()),
        load_votes,
    ),
    "similarities": Parser(
        "f.csv", lambda: inputs.tables(["", *CLASSES]) | inputs.damaged(_fes()), load_fes
    ),
    "genotype": Parser(
        "g.txt", lambda: inputs.genotype_texts([format_genotype(Auto_FERNet)]), load_genotype
    ),
    "genotype as JSON": Parser("g.json", lambda: inputs.json_texts([Auto_FERNet]), _read_json),
    "summary": Parser("summary.json", lambda: inputs.json_texts([_summary()]), _collect),
    "manifest": Parser(
        MANIFEST, lambda: inputs.json_texts([_manifest()]), _verify, _write_manifest
    ),
    "cache": Parser("fer2013.csv", _caches, _read_cache, _write_cached),
}
