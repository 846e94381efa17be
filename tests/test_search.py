"""The loop of the search against one written out: what an epoch does to alphas and weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from architect import complexity, first_order_gradient, penalised_edges
from data.augment import Augmentation
from data.fer2013 import Split
from engine import autocast, cosine
from model_search import OPEN, Network
from search import SearchState, search, search_one_epoch
from utils import Stop

FULL = autocast(torch.device("cpu"), "off")
GRAD_CLIP = 0.05  # low enough to clip
SIZE = 8  # of the images: small, and still halved twice


def supernet() -> Network:
    torch.manual_seed(0)
    network = Network(4, 7, 3).double()
    for alpha in network.arch_parameters():
        alpha.data.normal_()
    return network


def optimizers(network: Network) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return (
        torch.optim.SGD(network.weight_parameters(), 0.1, momentum=0.9, weight_decay=3e-4),
        torch.optim.Adam(network.arch_parameters(), 3e-2, betas=(0.5, 0.999), weight_decay=1e-3),
    )


def draw_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return images, torch.randint(7, (6,), generator=generator)


def penalty_of(network: Network) -> torch.Tensor:
    edges = penalised_edges(network.normal_selected_idxs, first_only=False)
    return complexity(network.alphas_normal, edges)


def gradient_of(network: Network):
    return lambda _, valid: first_order_gradient(
        network, valid, penalty=lambda: penalty_of(network), precision=FULL
    )


def test_a_step_moves_the_alphas_by_adam_then_the_weights_by_clipped_sgd():
    network = supernet()
    twin = copy.deepcopy(network)
    pairs = [(draw_batch(2 * k), draw_batch(2 * k + 1)) for k in range(3)]
    state, (optimizer, alphas_optimizer) = SearchState(), optimizers(network)
    meter = search_one_epoch(
        network,
        pairs,
        optimizer,
        alphas_optimizer,
        alphas_gradient=gradient_of(network),
        state=state,
        steps=3,
        grad_clip=GRAD_CLIP,
        precision=FULL,
        report_freq=10,
        stop=Stop(),
    )

    optimizer, alphas_optimizer = optimizers(twin)
    losses, clipped = [], []
    for (images, labels), (others, answers) in pairs:
        twin.zero_grad()
        (F.cross_entropy(twin(others), answers) + penalty_of(twin)).backward()
        alphas_optimizer.step()
        twin.zero_grad()
        loss = F.cross_entropy(twin(images), labels)
        loss.backward()
        norm = sum((p.grad**2).sum() for p in twin.weight_parameters()) ** 0.5
        for parameter in twin.weight_parameters():
            parameter.grad *= min(1.0, GRAD_CLIP / (norm + 1e-6))
        optimizer.step()
        losses.append(loss.item())
        clipped.append(norm.item() > GRAD_CLIP)
    for (name, found), expected in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10, msg=name)
    assert state.step == 3
    assert meter.read()[0] == pytest.approx(sum(losses) / 3)
    assert any(clipped)


def test_a_search_moves_the_learning_rate_grows_the_batch_and_decides_when_it_is_told():
    torch.manual_seed(0)
    network = Network(2, 7, 3)
    images = torch.randint(0, 256, (12, 1, SIZE, SIZE), dtype=torch.uint8)
    half = Split(images, torch.arange(12) % 7)
    optimizer, alphas_optimizer = optimizers(network)
    state, rates, opened = SearchState(), [], []

    def save() -> None:
        if state.history:
            rates.append(optimizer.param_groups[0]["lr"])
            opened.append(sum(s == OPEN for cell in network.states.values() for s in cell))

    search(
        network,
        optimizer,
        alphas_optimizer,
        half,
        half,
        alphas_gradient=gradient_of(network),
        state=state,
        epochs=4,
        batch_size=4,
        batch_increase=2,
        augmentation=Augmentation(crop=SIZE),
        learning_rate_at=lambda epoch: cosine(epoch / 4, 0.025, 0.001),
        decides_at=lambda epoch: epoch in (1, 2),
        use_history=False,
        history_size=4,
        post_val=False,
        grad_clip=5.0,
        seed=0,
        precision=FULL,
        report_freq=10,
        limit_batches=2,
        save=save,
        stop=Stop(),
    )
    assert rates == pytest.approx([0.025, 0.0214853, 0.013, 0.0045147], abs=1e-6)
    assert [record["lr"] for record in state.history] == rates
    assert [record["batch_size"] for record in state.history] == [4, 4, 6, 8]
    # The first decision of a cell prunes nothing; two of a node's edges prune its others.
    assert opened[0] == 28
    assert opened[1] == 26
    assert opened[2] <= 24
    assert opened[3] == opened[2]
    assert [d["epoch"] for d in state.decisions] == [2, 2, 3, 3]
