"""Trained networks by the names that users give them, and the weights that come with the code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.arguments import LIMITS
from common.manifest import verify
from data.types import CLASSES
from engine import Predict, network_predictor
from genotypes import Auto_FERNet, format_genotype, resolve_genotype
from model import Network, build_network
from recipe.schedules import DropPath
from runtime.errors import UserError, reading
from utils import check_state, load_checkpoint

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
CHOSEN = "best_val_weights.pt"  # the weights of a run folder: the best on PublicTest
DEFAULT = "auto_fernet"  # the paper's network
DROP_PATH_PROB = 0.2  # of training, as published
_FIELDS = {"init_channels": "C", "layers": "layers", "arch": "genotype"}


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
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise UserError(
        f"{flag} {name}: no weights found; looked for {looked}, as a file or as the run folder "
        f"of a training, which holds {CHOSEN}"
    )


def load_trained(
    path: Path,
    *,
    layers: int | None = None,
    init_channels: int | None = None,
    arch: str | None = None,
    model_path: str = "saved_models",
) -> Trained:
    """Build the network of a checkpoint, or of a bare state dict, which does not say its `arch`.

    `arch` is resolved inside `model_path`. Raises UserError for what is no network, for a file that
    differs from its entry in a manifest beside it, and for a flag that contradicts the file.
    """
    verify(path)
    checkpoint = load_checkpoint(path, ["weights", "training", "state_dict"])
    flags: dict[str, Any] = {"init_channels": init_channels, "layers": layers, "arch": arch}
    with reading(path, "a checkpoint of the scripts"):
        state = checkpoint["state_dict"]
        if arch is not None:
            flags["arch"] = format_genotype(resolve_genotype(arch, model_path))
        description = checkpoint.get("model") or describe_state(state, flags["arch"], path)
        for flag, value in flags.items():
            says = description[_FIELDS[flag]]
            if value not in (None, says):
                given = arch if flag == "arch" else value
                raise UserError(f"--{flag} {given}: contradicts {path}, which says {says}")
        if checkpoint.get("average") is not None:  # as in the weights that the run saved
            state = {
                name.removeprefix("module."): tensor
                for name, tensor in checkpoint["average"].items()
                if name != "n_averaged"
            }
        return Trained(
            path,
            rebuild_network(description, state, path),
            checkpoint.get("epoch", 0),
            checkpoint.get("epochs", 0),
            checkpoint.get("drop_path_prob"),
            class_names(checkpoint.get("classes"), description["num_classes"]),
        )


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


def describe_state(state: dict[str, Tensor], genotype: str | None, path: Path) -> dict[str, Any]:
    """The description of the network of a bare state dict, to which tensors may be added.

    `genotype` is the paper's when None. Batch counts that older codes did not save become 0.
    Raises UserError for the weights of something else.
    """
    cells = {name.split(".")[1] for name in state if name.startswith("cells.")}
    if not cells or not {"stem.0.weight", "classifier.weight"} <= state.keys():
        raise UserError(
            f"{path}: holds no stem, cells and classifier, expected the weights of such a network"
        )
    for name in list(state):
        if name.endswith(".running_var"):
            state.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return {
        "C": len(state["stem.0.weight"]) // 3,
        "num_classes": len(state["classifier.weight"]),
        "layers": len(cells),
        "auxiliary": any(name.startswith("auxiliary_head.") for name in state),
        "genotype": genotype or format_genotype(Auto_FERNet),
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


def require_classes(path: Path | str, classes: Sequence[str], expected: Sequence[str]) -> None:
    """Raise UserError unless the network of `path` has the expected classes, in their order."""
    if tuple(classes) != tuple(expected):
        raise UserError(
            f"{path}: a network of the classes {', '.join(classes)}; expected {', '.join(expected)}"
        )


def fit_classes(trained: Trained, classes: Sequence[str], reset: bool) -> Network:
    """The network, for `classes`: with `reset` its last layers are new where its own differ.

    Raises UserError where they differ without `reset` (--reset_classifier).
    """
    if trained.classes != tuple(classes):
        if not reset:
            raise UserError(
                f"{trained.path}: a network of the classes {', '.join(trained.classes)}, the data "
                f"has {', '.join(classes)}; give --reset_classifier for a new last layer"
            )
        trained.model.reset_classifier(len(classes))
    return trained.model


def load_network(name: str = DEFAULT, model_path: str = "saved_models") -> Network:
    """A trained network by name, as --checkpoint finds it: on the CPU, in evaluation mode.

    network(images)[0] are the logits (N, K) of float images (N, 1, 48, 48) in [0, 1].
    """
    return load_trained(find_weights("name", name, model_path)).model.eval()


def load_members(
    flag: str, names: Sequence[str], device: torch.device, **flags: Any
) -> tuple[Predict, tuple[str, ...]]:
    """The checkpoints that `flag` names as one function, the mean of their logits; their classes.

    From float32 (B, 1, H, W) on `device` to (B, K), networks in evaluation mode, no gradients.
    `flags` are those of `load_trained`. Raises UserError when a network has other classes than the
    first.
    """
    model_path = flags.get("model_path", "saved_models")
    trained = [load_trained(find_weights(flag, name, model_path), **flags) for name in names]
    classes = trained[0].classes
    for member in trained:
        require_classes(member.path, member.classes, classes)
    members = [network_predictor(member.model.to(device)) for member in trained]

    @torch.no_grad()
    def mean_logits(images: Tensor) -> Tensor:
        return torch.stack([member(images).float() for member in members]).mean(dim=0)

    return mean_logits, classes


def load_teacher(
    args: argparse.Namespace, classes: Sequence[str], device: torch.device
) -> Predict | None:
    """The networks that --teacher names, as `load_members`; None without any.

    Raises UserError unless they are of `classes`.
    """
    if not args.teacher:
        return None
    teacher, own = load_members("--teacher", args.teacher, device, model_path=args.model_path)
    require_classes(",".join(args.teacher), own, classes)
    return teacher


# --- networks from checkpoints


def rebuild_network(description: Any, state: Any, source: Path | str) -> Network:
    """The network that a checkpoint describes, with its weights, on the CPU.

    Raises UserError naming `source` before anything is built that the file does not hold.
    """
    with reading(source, "a checkpoint of such a network"):
        for name, most in LIMITS.items():
            if description[name] not in range(1, most + 1):
                raise ValueError(f"{name} {description[name]}, expected 1 to {most}")
        # Without memory first, as a small file must not make us build a huge network; and without
        # random numbers, which are those of the run.
        with torch.device("meta"):
            model = build_network(description, f"{source}: genotype")
        check_state(model, state, source)
        # Strides as those of a network that is built with memory, which older versions of torch do
        # not keep: by them oneDNN chooses its kernels, and so the last bits of a resumed run.
        model = model.to_empty(device="cpu").to(memory_format=torch.channels_last)
        model.load_state_dict(state)
        return model
