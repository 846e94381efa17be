"""A step reads no value of the device: it runs on torch's `meta` device, whose tensors have none.

Whatever would make a GPU wait for the host, or mixes devices, raises there.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import Small, new_state, parse
from torch import Tensor, nn

import model_search
import search
from data.batches import training_batches
from data.halves import alphas_batches
from data.types import CLASSES, Split
from engine import build_augmentation, network_predictor, train_one_epoch
from genotypes import Auto_FERNet
from model import Network
from model_search import EDGES, OPEN, PRUNED
from recipe.mixing import mixing
from relabelling import Relabelling
from runtime.run import Progress, Run
from search import SearchState, search_one_epoch
from utils import AverageMeter

META = torch.device("meta")


def split(count: int = 16) -> Split:
    """Images and labels without values."""
    images = torch.empty(count, 1, 48, 48, dtype=torch.uint8, device=META)
    return Split(images, torch.empty(count, dtype=torch.int64, device=META))


def network() -> Network:
    with META:
        model = Network(4, 7, 3, True, Auto_FERNet)
    model.drop_path_prob = 0.2
    return model


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run on `meta`, where only the end of an epoch may read values."""
    monkeypatch.setattr(AverageMeter, "totals", lambda meter: [0.0, 0.0, 0.0])
    # There is no autocast for this device.
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    return Run(Path("nowhere"), META, torch.autocast("meta"))


def train(run: Run, model: nn.Module, words: str = "", **options: Any) -> None:
    """Two steps of `model` with whatever a step may have."""
    state, args = new_state(f"--epochs 2 --recipe strong --cutout --erasing 0.5 {words}", model)
    assert state.ema is not None
    place = {"batch_size": args.batch_size, "seed": args.seed, "epoch": 0}
    batches = training_batches(split(), augmentation=build_augmentation(args, jitter=0.5), **place)
    train_one_epoch(state, batches, args, run, steps=2, forward=model, **options)
    assert int(state.ema.n_averaged) == state.progress.step == 2


@pytest.mark.parametrize("mixup, cutmix", [(0.4, 0.0), (0.0, 1.0)])
def test_mixed_training_step(mixup, cutmix, run):
    words = "--sizes 32 --size_epochs 2 --label_smoothing 0.1"
    teacher = torch.no_grad()(network_predictor(network()))
    train(run, network(), words, mix=mixing(mixup, cutmix, 7), teacher=teacher)


@pytest.mark.parametrize("fes", [None, torch.rand(7, 7)], ids=["any class", "FES"])
def test_relabelling_step(fes, run):
    relabelling = Relabelling(CLASSES, META, threshold=0.2, fes=fes, fes_threshold=0.03)
    relabelling.begin(Progress(epoch=1))
    train(run, Small().to(META), relabelling=relabelling)


@pytest.mark.parametrize("order", ["--no-unrolled", "--unrolled"])
def test_search_step(order, run):
    args = parse(f"{order} --batch_size 8 --report_freq 100", search)
    with META:
        model = model_search.Network(2, 7, 1)
    decided = [*range(1, 11), PRUNED]
    states = [*decided, *[OPEN] * (len(EDGES) - len(decided))]
    model.set_states(states, states)
    state = SearchState(model, args, run.precision)
    options = {"batch_size": 8, "seed": 0, "epoch": 0}
    options["augmentation"] = build_augmentation(args, search.JITTER)
    pairs = zip(
        training_batches(split(), **options),
        alphas_batches(split(12), **options, step=0),
        strict=False,
    )
    search_one_epoch(state, pairs, args, run, steps=2)
    assert state.progress.step == 2
    assert len(state.architect.optimizer.state) == 2 * states.count(OPEN)


@pytest.mark.parametrize("read", [
    lambda x: x.sum().item(), Tensor.nonzero, lambda x: x + torch.rand(x.shape),
], ids=["item", "nonzero", "two devices"])  # fmt: skip
def test_reading_a_value_in_a_step_raises(read, run):
    def relabelling(logits: Tensor, labels: Tensor) -> Tensor:
        read(logits)
        return labels

    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
        train(run, Small().to(META), relabelling=relabelling)
    train(run, Small().to(META), relabelling=lambda logits, labels: labels)
