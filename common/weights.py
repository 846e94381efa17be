"""Trained networks by the names that users give them: `--checkpoint X`, `--model_names A,B`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import arguments
from common.checkpoints import check_progress, parts_of, rebuild_network
from common.manifest import CHECKPOINTS, verify
from common.recipe import recipe_parser
from common.training import CHOSEN
from data.fer2013 import CLASSES
from engine import network_predictor, rising
from genotypes import GENOTYPE_FILE, format_genotype, resolve_genotype
from model import Network
from utils import UserError, load_checkpoint

# What a bare state dict is taken for where no flag says otherwise: the paper's network.
_PUBLISHED = {"init_channels": 36, "layers": 12, "arch": "Auto_FERNet"}
DROP_PATH_PROB = 0.2  # of training, as published
_FIELDS = {"init_channels": "C", "layers": "layers", "arch": "genotype"}


@dataclass(frozen=True)
class Trained:
    """A network with its weights, on the CPU, and what its checkpoint says of its training.

    `epoch` of `epochs` were trained with drop-path rising to `drop_path_prob`; a bare state dict
    says nothing: 0, 0 and None.
    """

    path: Path
    model: Network
    description: dict[str, Any]
    epoch: int
    epochs: int
    drop_path_prob: float | None

    def drop_path_at(self, epoch: int, *, epochs: int, drop_path_prob: float | None) -> float:
        """The drop-path probability `epoch` epochs on: it goes on rising as it did in training.

        `epochs` is what it rises over when the checkpoint does not say, `drop_path_prob` what it
        rises to unless None.
        """
        highest = self.highest_drop_path(drop_path_prob)
        return rising(self.epoch + epoch, self.epochs or epochs, highest)

    def highest_drop_path(self, given: float | None) -> float:
        """What drop-path rises to: as given, else as trained, else the published value."""
        known = (given, self.drop_path_prob, DROP_PATH_PROB)
        return next(p for p in known if p is not None)


def finetuning_parsers(
    *, learning_rate: float, epochs: int, why: str
) -> list[argparse.ArgumentParser]:
    """The flags of scripts that train a network on, as parent parsers; `why` that network."""
    return [
        checkpoint_parser(why=why),
        network_parser(),
        arguments.sgd_parser(
            learning_rate=learning_rate,
            why="the published value; it falls to 0 as a cosine",
            drop_path_prob=None,
            drop_path_why=f"what the checkpoint says, else {DROP_PATH_PROB} as published; it goes "
            "on rising from the checkpoint's epoch",
        ),
        arguments.training_parser(epochs=epochs),
        recipe_parser(),
    ]


def checkpoint_parser(*, why: str) -> argparse.ArgumentParser:
    """The flag of scripts that start from one trained network, as a parent parser."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument_group("the trained network").add_argument(
        "--checkpoint",
        metavar="X",
        help="weights: a file, as given or with .pt added or inside --model_path, a run folder, "
        "or the name of weights in checkpoints/; "
        f"{why} (needed, unless --resume; no default, as the result hangs on it)",
    )
    return parser


def network_parser(*, layers: bool = True) -> argparse.ArgumentParser:
    """The flags that describe a bare state dict, as a parent parser."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("a bare state dict, which does not describe itself")
    # fmt: off
    add = group.add_argument
    add("--arch", nargs="?", const="Auto_FERNet", metavar="GENOTYPE",
        help="its genotype: a name of genotypes.py, a literal Genotype(...), a genotype file or a "
        "search's run folder (default: what the checkpoint says, else Auto_FERNet as published)")
    add("--init_channels", type=arguments.positive_int, metavar="C",
        help="channels of its first cell (default: what the checkpoint says, else 36 as published)")
    if layers:
        add("--layers", type=arguments.positive_int, metavar="L",
            help="its cells (default: what the checkpoint says, else 12 as published)")
    # fmt: on
    return parser


def find_weights(flag: str, name: str, model_path: str) -> Path:
    """The file that `name` means: as given, with .pt, inside `model_path`, or a run folder's best;
    else one that came with the code, in `checkpoints/`.

    Raises UserError that names `flag` and the places looked at.
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


def require_weights(checkpoint: str | None, model_path: str) -> Path:
    """The file that --checkpoint means; UserError when it was not given."""
    if checkpoint is None:
        raise UserError("--checkpoint: none given; expected weights to start from")
    return find_weights("--checkpoint", checkpoint, model_path)


def load_members(
    flag: str, names: Sequence[str], model_path: str, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The checkpoints that `flag` names, which describe themselves, as one: their mean logits.

    From float32 (B, 1, H, W) on `device` to (B, 7), networks in evaluation mode.
    """
    paths = [find_weights(flag, name, model_path) for name in names]
    flags = {"layers": None, "init_channels": None, "arch": None}
    members = [
        network_predictor(load_trained(path, **flags).model.to(device).requires_grad_(False))
        for path in paths
    ]
    return lambda images: torch.stack([member(images).float() for member in members]).mean(dim=0)


def load_trained(
    path: Path, *, layers: int | None, init_channels: int | None, arch: str | None
) -> Trained:
    """Rebuild the network of a checkpoint, or of a bare state dict by the flags given.

    Raises UserError for what is no network of seven classes, for a file that is not what a manifest
    beside it says, and for a flag that contradicts what the checkpoint says of itself.
    """
    verify(path)
    found = load_checkpoint(path, ["weights", "training", "state_dict"])
    flags = {"init_channels": init_channels, "layers": layers, "arch": arch}
    if "state_dict" not in found:
        raise UserError(f"{path}: holds no state_dict, expected the weights of a network")
    if found["kind"] == "state_dict":
        given = {name: _PUBLISHED[name] if v is None else v for name, v in flags.items()}
        description = {
            "C": given["init_channels"],
            "num_classes": len(CLASSES),
            "layers": given["layers"],
            "auxiliary": any(str(key).startswith("auxiliary_head.") for key in found["state_dict"]),
            "genotype": format_genotype(resolve_genotype(given["arch"])),
        }
    else:
        with parts_of(path):
            description = {**found["model"]}
            says_all = {name: description[key] for name, key in _FIELDS.items()}
        for name, value in flags.items():
            if value is None:
                continue
            wanted = format_genotype(resolve_genotype(value)) if name == "arch" else value
            says = says_all[name]
            if wanted != says:
                raise UserError(f"--{name} {value}: contradicts {path}, which says {says}")
    model = rebuild_network(description, found.get("state_dict"), path)
    if description["num_classes"] != len(CLASSES):
        raise UserError(
            f"{path}: a network of {description['num_classes']} classes, expected {len(CLASSES)}"
        )
    progress = {"epoch": 0, "epochs": 0, "drop_path_prob": None}
    if found["kind"] != "state_dict":
        with parts_of(path):
            check_progress(found)
            progress = {name: found[name] for name in progress}
    return Trained(path, model, description, **progress)
