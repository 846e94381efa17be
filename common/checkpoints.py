"""Putting the parts of a checkpoint in place, which may come from anybody: checks, then builds."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import model_search
from engine import TrainState
from genotypes import PRIMITIVES, parse_genotype
from model import Network, build_network
from model_search import OPEN
from utils import UserError, check_state, is_out_of_memory, load_checkpoint, load_state

# Far above any network of the field, and small enough to lay out in a second.
MAX_CHANNELS = 1024
MAX_CLASSES = 1024
MAX_LAYERS = 50

Built = TypeVar("Built", bound=nn.Module)


@contextmanager
def parts_of(path: Path | str) -> Iterator[None]:
    """Whatever the parts of a checkpoint raise while they are put in place is a UserError."""
    try:
        yield
    except (ArgumentTypeError, ArithmeticError, AssertionError, AttributeError, LookupError,
            RuntimeError, TypeError, ValueError) as error:  # fmt: skip
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{path}: not what this version saves ({type(error).__name__}: {error}); expected a "
            "checkpoint of the same script and version"
        ) from error


def rebuild_network(description: Any, state: Any, source: Path | str) -> Network:
    """The network that a checkpoint describes, with its weights, on the CPU.

    Raises UserError naming `source` before anything is built that the file does not hold.
    """
    _check_description(description, {"auxiliary": bool, "genotype": str}, source)
    parse_genotype(description["genotype"], str(source))
    return _rebuild(lambda: build_network(description), state, source)


def rebuild_supernet(description: Any, state: Any, source: Path | str) -> model_search.Network:
    """The supernet that a search's checkpoint describes, as `rebuild_network`."""
    _check_description(description, {}, source)
    return _rebuild(lambda: model_search.Network(**description), state, source)


def _check_description(description: Any, kinds: Mapping[str, type], source: Path | str) -> None:
    limits = {"C": MAX_CHANNELS, "num_classes": MAX_CLASSES, "layers": MAX_LAYERS}
    sound = (
        isinstance(description, dict)
        and description.keys() == {*limits, *kinds}
        and all(
            type(description[name]) is int and 1 <= description[name] <= most
            for name, most in limits.items()
        )
        and all(type(description[name]) is kind for name, kind in kinds.items())
    )
    if not sound:
        expected = ", ".join(f"{name} of 1 to {most}" for name, most in limits.items())
        raise UserError(
            f"{source}: describes its network as {str(description)[:200]}, expected {expected}"
            + "".join(f", {name}" for name in kinds)
        )


def _rebuild(build: Callable[[], Built], state: Any, source: Path | str) -> Built:
    # Laid out without memory first: a small file must not make us build a huge network.
    with torch.device("meta"):
        check_state(build(), state, source)
    module = build()
    load_state(module, state, source)
    return module


def resume_training(run: Path) -> tuple[dict[str, Any], Network, TrainState]:
    """The checkpoint of a training's folder, its network and where it stands; else UserError."""
    path = run / "checkpoint.pt"
    found = load_checkpoint(path, ["training"])
    with parts_of(path):
        model = rebuild_network(found["model"], found["state_dict"], path)
        check_progress(found, ["epoch", "epochs", "start_epoch"])
        return found, model, restore_state(TrainState, found["state"])


def check_progress(found: Mapping[str, Any], names: Sequence[str] = ("epoch", "epochs")) -> None:
    """Raise ValueError unless the counts called `names` and the drop-path of weights are such."""
    for name in names:
        if type(found[name]) is not int or not 0 <= found[name] < 2**31:
            raise ValueError(f"{name} {found[name]}")
    if not (is_number(found["drop_path_prob"]) and 0 <= found["drop_path_prob"] < 1):
        raise ValueError(f"drop_path_prob {found['drop_path_prob']}")


def restore_state(kind: Callable[..., Any], plain: Any) -> Any:
    """The `kind` of TrainState that `plain` holds; ValueError or TypeError where it is none."""
    state = kind(**plain)
    counts = all(type(n) is int and n >= 0 for n in (state.epoch, state.step))
    numbers = len(state.sums) == 3 and all(map(is_number, (*state.sums, state.seconds)))
    if not (counts and numbers and isinstance(state.extra, dict)):
        raise ValueError("no count of epochs, steps and sums")
    numbered = [record["epoch"] for record in state.history]
    if numbered != list(range(1, state.epoch + 1)):
        raise ValueError(f"records of {len(numbered)} epochs, {state.epoch} expected")
    for record in state.history:
        # Losses of an evaluation may well not be finite.
        if not all(type(value) in (int, float, type(None)) for value in record.values()):
            raise ValueError("a record that is not of numbers")
        if not {"train_loss", "train_accuracy", "seconds"} <= record.keys():
            raise ValueError("a record without figures of training")
    return state


def check_edges(edges: Any) -> None:
    """Raise ValueError unless the states of edges of both cells are such."""
    states = [*edges["normal"], *edges["reduce"]]
    if not all(type(state) is int and OPEN <= state < len(PRIMITIVES) for state in states):
        raise ValueError("an edge in no state")


def load_optimizer(
    optimizer: torch.optim.Optimizer, found: Any, source: Path | str, name: str = "optimizer"
) -> None:
    """Load what an optimiser keeps of each parameter; its settings stay those of the flags.

    The checkpoint `found` has it, under `name`, as the state dict of an optimiser of the same
    parameters. Raises UserError when it is not, or not finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with parts_of(source):
        saved = found[name]
        for index, kept in saved["state"].items():
            for moment, value in kept.items():
                if value is not None and not is_finite(value, (), parameters[index].shape):
                    raise ValueError(f"{moment} of parameter {index} does not fit it")
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def resume_optimisation(
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    found: Mapping[str, Any],
    source: Path | str,
) -> None:
    """Go on with the optimiser, and the average of the weights where a run has one.

    `found` has them as "optimizer" and "average". Raises UserError as `load_optimizer`.
    """
    load_optimizer(optimizer, found, source)
    if average is not None:
        load_state(average, found.get("average"), source)


def is_finite(value: Any, *shapes: Sequence[int]) -> bool:
    """Whether it is a tensor of one of `shapes`, of finite numbers.

    Raises RuntimeError for kinds of tensors that cannot be asked.
    """
    shaped = torch.is_tensor(value) and value.is_floating_point() and value.shape in shapes
    return shaped and bool(value.isfinite().all())


def is_number(value: Any) -> bool:
    """Whether it is a finite number and no truth value."""
    return type(value) in (int, float) and math.isfinite(value)
