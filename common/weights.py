"""Trained networks by the names that users give them, and the weights that come with the code."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import model_search
from common.arguments import LIMITS
from common.training import CHOSEN
from data.types import CLASSES, DataSet
from engine import DropPath, Predict, Run, network_predictor
from genotypes import GENOTYPE_FILE, Genotype, format_genotype, resolve_genotype
from model import Network, build_network
from utils import (
    UserError,
    atomic_write,
    check_state,
    load_checkpoint,
    reading,
    write_text,
)

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
MANIFEST = "MANIFEST.json"
DEFAULT = "auto_fernet"  # the paper's network
DROP_PATH_PROB = 0.2  # of training, as published
# What a bare state dict is taken for without flags: the paper's network.
_PUBLISHED: dict[str, Any] = {"init_channels": 36, "layers": 12, "arch": "Auto_FERNet"}
_FIELDS = {"init_channels": "C", "layers": "layers", "arch": "genotype"}

Built = TypeVar("Built", bound=nn.Module)


@dataclass(frozen=True)
class Trained:
    """A network with its weights, on the CPU, its classes and how far its checkpoint was trained.

    `epoch` of `epochs` were trained, with drop-path rising to `drop_path_prob`; a bare state dict
    says nothing: 0, 0 and None.
    """

    path: Path
    model: Network
    epoch: int
    epochs: int
    drop_path_prob: float | None
    classes: tuple[str, ...] = CLASSES

    def drop_path(self, args: argparse.Namespace) -> DropPath:
        """The schedule that continues that of the training.

        It rises to --drop_path_prob, else as trained, else to the published value; over the epochs
        of the training, else --epochs.
        """
        known = (args.drop_path_prob, self.drop_path_prob, DROP_PATH_PROB)
        highest = next(p for p in known if p is not None)
        return DropPath(self.epoch, self.epochs or args.epochs, highest)


def find_weights(flag: str, name: str, model_path: str) -> Path:
    """The file that `name` means: as given, with .pt, inside `model_path`, or a run folder's best;
    else one that comes with the code, in `checkpoints/`.

    Raises UserError that names `flag` and the places searched.
    """
    places = [
        Path(name),
        Path(f"{name}.pt"),
        Path(model_path) / name,
        Path(model_path) / f"{name}.pt",
        CHECKPOINTS / f"{name}.pt",
    ]
    for place in places:
        if place.is_file():
            return place
        if (place / CHOSEN).is_file():
            return place / CHOSEN
    for place in places:
        if (place / GENOTYPE_FILE).is_file():
            raise UserError(
                f"{flag} {name}: {place} is of a search, which leaves no weights; expected a "
                f"training's folder, such as train_FER2013.py --arch {place} makes"
            )
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise UserError(
        f"{flag} {name}: no weights found; looked for {looked}, as a file or as a run folder "
        f"that holds {CHOSEN}"
    )


def load_trained(
    path: Path,
    *,
    layers: int | None = None,
    init_channels: int | None = None,
    arch: str | None = None,
    model_path: str = "saved_models",
) -> Trained:
    """Build the network of a checkpoint, or of a bare state dict as the flags describe it.

    The flags are also what `arch` is resolved with, inside `model_path`. Raises UserError for what
    is no network, for a file that differs from its entry in a manifest beside it, and for a flag
    that contradicts the checkpoint.
    """
    verify(path)
    found = load_checkpoint(path, ["weights", "training", "state_dict"])
    flags: dict[str, Any] = {"init_channels": init_channels, "layers": layers, "arch": arch}
    progress: dict[str, Any] = {"epoch": 0, "epochs": 0, "drop_path_prob": None}
    with reading(path, "a checkpoint of the scripts"):
        if found["kind"] == "state_dict":
            given = {name: _PUBLISHED[name] if v is None else v for name, v in flags.items()}
            genotype = resolve_genotype(given["arch"], model_path)
            description = describe_state(found["state_dict"], given, genotype, path)
            classes = class_names(None, description["num_classes"])
        else:
            description = found["model"]
            if found.get("average") is not None:
                # As in the weights that the run saved.
                found["state_dict"] = {
                    name.removeprefix("module."): value
                    for name, value in found["average"].items()
                    if name != "n_averaged"
                }
            progress = {name: found[name] for name in progress}
            for name, value in flags.items():
                wanted = value
                if name == "arch" and value is not None:
                    wanted = format_genotype(resolve_genotype(value, model_path))
                says = description[_FIELDS[name]]
                if wanted is not None and wanted != says:
                    raise UserError(f"--{name} {value}: contradicts {path}, which says {says}")
            classes = class_names(found.get("classes"), description["num_classes"])
        model = rebuild_network(description, found["state_dict"], path)
        if not (
            # Larger than any sum of flags, as fine-tuning adds to the epochs before it.
            all(0 <= progress[name] < 2**62 for name in ("epoch", "epochs"))
            and (progress["drop_path_prob"] is None or 0 <= progress["drop_path_prob"] < 1)
        ):
            raise ValueError(f"trained for {progress}")
    return Trained(path, model, classes=classes, **progress)


def class_names(saved: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of the `count` classes of a network: as saved, else FER2013's, else numbers.

    Checkpoints of before there were other classes, and bare state dicts, save none.
    """
    if saved is None:
        return CLASSES if count == len(CLASSES) else tuple(map(str, range(count)))
    names = tuple(map(str, saved))
    if len(set(names)) != count:
        raise ValueError(f"{len(set(names))} names of {count} classes")
    return names


def describe_state(
    state: dict[str, Tensor], given: Mapping[str, Any], genotype: Genotype, path: Path
) -> dict[str, Any]:
    """The description of the network of a bare state dict, to which tensors may be added.

    Batch counts that older codes did not save become 0. Raises UserError that says which flag
    fits, where width or depth are not those `given`.
    """
    stem, classifier = state.get("stem.0.weight"), state.get("classifier.weight")
    cells = {name.split(".")[1] for name in state if name.startswith("cells.")}
    if stem is None or classifier is None or not cells:
        raise UserError(
            f"{path}: holds no stem, cells and classifier, expected the weights of such a network"
        )
    if len(stem) != 3 * given["init_channels"]:
        fits = f"{len(stem)} = 3 x {len(stem) // 3}: give --init_channels {len(stem) // 3}"
        raise UserError(
            f"{path}: a stem of {len(stem)} channels, expected {3 * given['init_channels']}"
            + (f"; {fits}" if len(stem) % 3 == 0 else "")
        )
    if len(cells) != given["layers"]:
        raise UserError(
            f"{path}: {len(cells)} cells, expected {given['layers']}; give --layers {len(cells)}"
        )
    for name in [name for name in state if name.endswith(".running_var")]:
        counter = name.replace("running_var", "num_batches_tracked")
        state.setdefault(counter, torch.tensor(0))
    return {
        "C": given["init_channels"],
        "num_classes": len(classifier),
        "layers": given["layers"],
        "auxiliary": any(name.startswith("auxiliary_head.") for name in state),
        "genotype": format_genotype(genotype),
    }


def load_start(args: argparse.Namespace) -> Trained:
    """The network that --checkpoint means; UserError when it was not given."""
    if args.checkpoint is None:
        raise UserError("--checkpoint: none given; expected weights to start from")
    path = find_weights("--checkpoint", args.checkpoint, args.model_path)
    return load_trained(path, **network_flags(args), layers=args.layers)


def network_flags(args: argparse.Namespace) -> dict[str, Any]:
    """What `load_trained` takes from the flags that describe a bare state dict, but --layers."""
    names = ("init_channels", "arch", "model_path")
    return {name: getattr(args, name) for name in names}


def require_classes(path: Path | str, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raise UserError unless the network of `path` has the expected classes, in their order."""
    if tuple(found) != tuple(expected):
        raise UserError(
            f"{path}: a network of the classes {', '.join(found)}; expected {', '.join(expected)}"
        )


def fit_classes(trained: Trained, classes: Sequence[str], reset: bool) -> Network:
    """The network, for `classes`: with `reset` its last layers are new where its own differ.

    Raises UserError where they differ without `reset` (--reset_classifier).
    """
    model = trained.model
    if trained.classes == tuple(classes):
        return model
    if not reset:
        raise UserError(
            f"{trained.path}: a network of the classes {', '.join(trained.classes)}, the data has "
            f"{', '.join(classes)}; give --reset_classifier for a new last layer"
        )
    model.reset_classifier(len(classes))
    return model


def load_network(name: str = DEFAULT, model_path: str = "saved_models") -> Network:
    """A trained network by name, as --checkpoint finds it: on the CPU, in evaluation mode.

    network(images)[0] are the logits (N, K) of float images (N, 1, 48, 48) in [0, 1].
    """
    return load_trained(find_weights("name", name, model_path)).model.eval()


def load_members(
    flag: str,
    names: Sequence[str],
    device: torch.device,
    **flags: Any,
) -> tuple[Predict, tuple[str, ...]]:
    """The checkpoints that `flag` names as one function, the mean of their logits; their classes.

    From float32 (B, 1, H, W) on `device` to (B, K), networks in evaluation mode, no gradients.
    `flags` are those of `load_trained`. Raises UserError when a network has other classes than the
    first.
    """
    model_path = flags.get("model_path", "saved_models")
    trained = [load_trained(find_weights(flag, name, model_path), **flags) for name in names]
    classes = trained[0].classes
    for each in trained:
        require_classes(each.path, each.classes, classes)
    members = [network_predictor(each.model.to(device)) for each in trained]

    @torch.no_grad()
    def mean_logits(images: Tensor) -> Tensor:
        return torch.stack([member(images).float() for member in members]).mean(dim=0)

    return mean_logits, classes


def load_teacher(
    args: argparse.Namespace, device: torch.device
) -> tuple[Predict | None, tuple[str, ...]]:
    """The networks that --teacher names and their classes, as `load_members`; None without any."""
    if not args.teacher:
        return None, ()
    return load_members("--teacher", args.teacher, device, model_path=args.model_path)


def training_inputs(
    data: DataSet, args: argparse.Namespace, start: Trained | None = None
) -> dict[str, str]:
    """Digests, by flag, of the files that a training reads: the data, --teacher, its `start`."""
    inputs = {"data": data.digest()}
    if args.teacher:
        paths = [find_weights("--teacher", name, args.model_path) for name in args.teacher]
        inputs["teacher"] = " ".join(map(digest, paths))
    if start is not None:
        inputs["checkpoint"] = digest(start.path)
    return inputs


# --- networks from checkpoints


def rebuild_network(description: Any, state: Any, source: Path | str) -> Network:
    """The network that a checkpoint describes, with its weights, on the CPU.

    Raises UserError naming `source` before anything is built that the file does not hold.
    """
    return _rebuild(lambda d: build_network(d, f"{source}: genotype"), description, state, source)


def rebuild_supernet(description: Any, state: Any, source: Path | str) -> model_search.Network:
    """The supernet that a search's checkpoint describes, as `rebuild_network`."""
    return _rebuild(lambda d: model_search.Network(**d), description, state, source)


def _rebuild(
    build: Callable[[dict[str, Any]], Built], description: Any, state: Any, source: Path | str
) -> Built:
    with reading(source, "a checkpoint of such a network"):
        for name, most in LIMITS.items():
            if type(description[name]) is not int or not 1 <= description[name] <= most:
                raise ValueError(f"{name} {description[name]}, expected 1 to {most}")
        # Without memory first: a small file must not make us build a huge network.
        with torch.device("meta"):
            check_state(build(description), state, source)
        model = build(description)
        model.load_state_dict(state)
        return model


def resume_network(
    run: Run, classes: Sequence[str], args: argparse.Namespace
) -> tuple[Network, DropPath]:
    """The network and the drop-path schedule of the training that `run` resumes.

    Raises UserError when it was trained on other `classes`.
    """
    found, path = run.resumed or {}, run.folder / "checkpoint.pt"
    with reading(path, "a checkpoint of the same script and version"):
        model = rebuild_network(found["model"], found["state_dict"], path)
        own = class_names(found.get("classes"), found["model"]["num_classes"])
        if own != tuple(classes):
            raise UserError(
                f"{path}: of the classes {', '.join(own)}, the data has {', '.join(classes)}; "
                "expected the same data"
            )
        # A training from scratch that was made longer ramps over all of it.
        epochs = found["epochs"] if found["start_epoch"] else max(found["epochs"], args.epochs)
        return model, DropPath(found["start_epoch"], epochs, found["drop_path_prob"])


# --- the manifest of checkpoints/


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of `folder`/MANIFEST.json by name, none without one.

    An entry says `file` and `sha256` at least; tools.export_weights writes the rest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    with reading(path, "entries by name, each with its file and sha256"):
        entries = json.loads(path.read_bytes())
        return {
            name: {**each, "file": each["file"], "sha256": each["sha256"]}
            for name, each in entries.items()
        }


def publish(draft: Path, folder: Path, name: str, entry: Mapping[str, Any]) -> Path:
    """Put the weights `draft` into `folder` as `name`.pt, with an entry in its manifest.

    A killed process leaves the old weights or the new ones, and a manifest that admits them:
    meanwhile the entry says also what it `replaces`. One process at a time may call it.
    """
    path = folder / f"{name}.pt"
    content, entries = draft.read_bytes(), read_manifest(folder)
    entries[name] = {**entry, "file": path.name, "sha256": digest(draft)}
    before = {"replaces": digest(path)} if path.is_file() else {}
    _write_manifest(folder, {**entries, name: {**entries[name], **before}})
    atomic_write(path, lambda file: file.write(content))
    _write_manifest(folder, entries)
    return path


def _write_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    write_text(folder / MANIFEST, json.dumps(entries, indent=2, sort_keys=True) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verify(path: Path) -> None:
    """Raise UserError when a manifest beside `path` names the file with another digest."""
    for name, entry in read_manifest(path.parent).items():
        known = (entry["sha256"], entry.get("replaces"))
        if entry["file"] == path.name and (found := digest(path)) not in known:
            raise UserError(
                f"{path}: sha256 {found}, expected {entry['sha256']} as {MANIFEST} says of {name}; "
                "get the file again"
            )
