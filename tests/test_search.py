"""The loop of the search against one written out: what an epoch does to alphas and weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_engine import parse
from torch.nn import functional as F

import search
from architect import complexity
from common import arguments, parsing
from data.augment import Augmentation
from data.types import Split
from model_search import NODES, OPEN, Network
from runtime.errors import UserError
from runtime.run import Run, autocast
from search import SearchState, search_one_epoch
from sgas import is_decision_epoch

SIZE = 8  # of the images: small, and still halved twice


def settings(flags: str) -> tuple:
    """The flags, and a run that computes on the CPU and writes nothing."""
    args, device = parse(flags, search), torch.device("cpu")
    return args, Run(Path(), device, autocast(device, "off"))


def draw_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return images, torch.randint(7, (6,), generator=generator)


def test_search_decides_every_edge_by_default(monkeypatch):
    # The number is among the flags of the run, so that --resume can raise it.
    monkeypatch.setattr(search, "start_run", lambda args, _: pytest.fail(f"{args.epochs} epochs"))
    for flags, epochs in {"": 50, "--decision_freq 1": 22, "--epochs 3": 3}.items():
        with pytest.raises(pytest.fail.Exception, match=f"^{epochs} epochs"):
            search.main(parse(flags, search))


def test_step_moves_alphas_by_adam_then_weights_by_clipped_sgd():
    torch.manual_seed(0)
    network = Network(4, 7, 3).double()
    for alpha in network.arch_parameters():
        alpha.data.normal_()
    twin = copy.deepcopy(network)
    pairs = [(draw_batch(2 * k), draw_batch(2 * k + 1)) for k in range(3)]
    # Low enough to clip.
    args, run = settings("--learning_rate 0.1 --grad_clip 0.05 --arch_learning_rate 3e-2")
    state = SearchState(network, args, run.precision)
    meter = search_one_epoch(state, pairs, args, run, steps=3)

    sgd = torch.optim.SGD(twin.weight_parameters(), 0.1, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(twin.arch_parameters(), 3e-2, betas=(0.5, 0.999), weight_decay=1e-3)
    losses, clipped = [], []
    for (images, labels), (others, answers) in pairs:
        twin.zero_grad()
        penalty = complexity(twin.alphas_normal, range(14))
        (F.cross_entropy(twin(others), answers) + penalty).backward()
        adam.step()
        twin.zero_grad()
        loss = F.cross_entropy(twin(images).float(), labels)
        loss.backward()
        norm = sum((p.grad**2).sum() for p in twin.weight_parameters()) ** 0.5
        for parameter in twin.weight_parameters():
            parameter.grad *= min(1.0, 0.05 / (norm + 1e-6))
        sgd.step()
        losses.append(loss.item())
        clipped.append(norm.item() > 0.05)
    for (name, found), expected in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10, msg=name)
    assert state.progress.step == 3
    assert meter.read()[0] == pytest.approx(sum(losses) / 3)
    assert any(clipped)


def test_search_follows_its_schedules(monkeypatch):
    monkeypatch.setattr(search, "build_augmentation", lambda *_: Augmentation(crop=SIZE))
    images = torch.randint(0, 256, (12, 1, SIZE, SIZE), dtype=torch.uint8)
    half = Split(images, torch.arange(12) % 7)
    args, run = settings(
        "--epochs 4 --batch_size 4 --batch_increase 2 --warmup_dec_epoch 1 --decision_freq 1 "
        "--limit_batches 2 --learning_rate 0.025 --learning_rate_min 0.001"
    )
    torch.manual_seed(0)
    state = SearchState(Network(4, 7, 3), args, run.precision)
    progress, rates, opened = state.progress, [], []

    def save() -> None:
        if progress.history:
            rates.append(state.optimizer.param_groups[0]["lr"])
            opened.append(sum(s == OPEN for cell in state.model.states.values() for s in cell))

    search.search(state, half, half, args, run, save)
    assert rates == pytest.approx([0.025, 0.0214853, 0.013, 0.0045147], abs=1e-6)
    assert [record["lr"] for record in progress.history] == rates
    assert [record["batch_size"] for record in progress.history] == [4, 4, 6, 8]
    # The first decision of a cell prunes nothing; two of a node's edges prune its others.
    assert [record["open_edges"] for record in progress.history] == opened
    assert opened[:2] == [28, 26]
    assert opened[3] < opened[2] <= 24
    assert [d["epoch"] for d in progress.decisions] == [2, 2, 3, 3, 4, 4]
    assert len(progress.past["normal"]) == min(4, args.history_size)


def test_channels_that_partial_channels_do_not_divide_are_refused():
    flags = "--init_channels 6 --partial_channels 4"
    with pytest.raises(UserError, match=r"--partial_channels 4: .* --init_channels 6"):
        search.new_search(settings("")[1], 7, parse(flags, search))


def test_first_epochs_train_weights_only_on_resized_images(monkeypatch):
    monkeypatch.setattr(search, "build_augmentation", lambda *_: Augmentation(crop=16))
    images = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
    half = Split(images, torch.arange(8) % 7)
    args, run = settings(
        "--epochs 3 --batch_size 4 --limit_batches 1 --size 8 --arch_warmup_epochs 2"
    )
    state = SearchState(Network(4, 7, 3), args, run.precision)
    sizes, alphas = set(), [state.model.alphas["normal"]]
    state.model.register_forward_hook(lambda _module, images, _out: sizes.add(images[0].shape[2:]))

    def save() -> None:
        if state.progress.history:
            alphas.append(state.model.alphas["normal"])

    search.search(state, half, half, args, run, save)
    assert sizes == {(8, 8)}
    assert [a.equal(alphas[0]) for a in alphas] == [True, True, True, False]


def test_laptop_recipe_decides_every_edge_and_yields_to_flags():
    args = parsing.parse(search.build_parser(), "--recipe laptop --layers 4".split())
    recipe = {**arguments.RECIPES["laptop"], "layers": 4}
    assert {name: getattr(args, name) for name in recipe} == recipe
    epochs = range(args.epochs)
    decided = [is_decision_epoch(e, args.warmup_dec_epoch, args.decision_freq) for e in epochs]
    assert sum(decided) == 2 * NODES
    assert args.arch_warmup_epochs < args.warmup_dec_epoch
    assert args.init_channels % args.partial_channels == 0
    assert parsing.parse(search.build_parser(), []).layers == 8


def test_search_without_open_edges_trains_weights_only():
    args, run = settings("")
    state = SearchState(Network(4, 7, 3), args, run.precision)
    state.model.set_states([4] * 14, [4] * 14)
    before = copy.deepcopy(state.model.state_dict())
    images, labels = draw_batch(0)
    search_one_epoch(state, [((images.float(), labels), None)], args, run, steps=1)
    after = state.model.state_dict()
    changed = {name for name in before if not after[name].equal(before[name])}
    assert "stem.0.weight" in changed
    assert not any(name.startswith("alphas_") for name in changed)
