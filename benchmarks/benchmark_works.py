"""What a side of a measurement does: the plain version's step, or ours by the loops of scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import architect
import search
from benchmarks.benchmark_parts import (
    AUXILIARY_WEIGHT,
    GRAD_CLIP,
    RELABEL,
    augmented,
    encode,
    exhaust,
    label_by_label,
    sgd,
    through_pil,
    train_on,
)
from benchmarks.plain import PlainNetwork, PlainSupernet
from data import synthetic
from data.augment import CROP
from data.fer2013 import CLASSES, Split
from data.fes import TRAINING_FES
from data.relabel import relabel
from engine import compiled, evaluate, network_predictor
from genotypes import resolve_genotype
from model import Network
from model_search import NODES, OPEN
from model_search import Network as Supernet
from utils import Stop

SIDES = ("plain", "ours", "compiled")
COMPILABLE = ("train", "decided")
DECISIONS = 2 * NODES  # until no edge of a cell is open


class Setup(NamedTuple):
    """Which side, how large, and where."""

    side: str
    channels: int
    layers: int
    batch: int
    decisions: int
    sample: int
    device: torch.device
    precision: torch.autocast


class Step(NamedTuple):
    """What is timed: `repeats` runs between two looks at the clock, each of so many images."""

    run: Callable[[], Any]
    images: int
    repeats: int = 1


def _batch(size: int, pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # What the images show costs no time, so noise will do.
    labels = torch.randint(0, len(CLASSES), (size,))
    return torch.rand(size, 1, pixels, pixels).to(device), labels.to(device)


# ---------------------------------------------------------------- search


def build_supernet(setup: Setup) -> Supernet:
    """A supernet after `setup.decisions` decisions of the first criterion."""
    model = Supernet(setup.channels, len(CLASSES), setup.layers)
    for _ in range(setup.decisions):
        scores = architect.score_cells(model, {"normal": [], "reduce": []}, use_history=False)
        architect.decide(model, scores)
    return model


def search_step(setup: Setup) -> Step:
    """A step on the alphas, where one is open, and one on the weights."""
    model = build_supernet(setup).to(setup.device)
    train, valid = (_batch(setup.batch, CROP, setup.device) for _ in range(2))
    if setup.side == "plain":
        plain = PlainSupernet(model).train()
        optimizers = _optimizers(plain.network)
        return Step(lambda: _plain_search_step(plain, *optimizers, train, valid), setup.batch)
    optimizer, alphas_optimizer = _optimizers(model)
    any_open = OPEN in [*model.normal_selected_idxs, *model.reduce_selected_idxs]

    def penalty() -> Tensor:
        edges = architect.penalised_edges(model.normal_selected_idxs, first_only=False)
        return architect.complexity(model.alphas_normal, edges)

    def run() -> None:
        search.search_one_epoch(
            model,
            [(train, valid if any_open else None)],
            optimizer,
            alphas_optimizer,
            alphas_gradient=lambda _, after: architect.first_order_gradient(
                model, after, penalty=penalty, precision=setup.precision
            ),
            state=search.SearchState(),
            steps=1,
            grad_clip=GRAD_CLIP,
            precision=setup.precision,
            report_freq=2,
            stop=Stop(),
        )

    return Step(run, setup.batch)


def _optimizers(model: Supernet) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return (
        sgd(model.weight_parameters()),
        torch.optim.Adam(model.arch_parameters(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3),
    )


def _plain_search_step(
    model: PlainSupernet,
    optimizer: torch.optim.Optimizer,
    alphas_optimizer: torch.optim.Optimizer,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
) -> None:
    """Both steps as DARTS writes them: every gradient each time, and the half of them used."""
    supernet = model.network
    if any(alpha.requires_grad for alpha in supernet.arch_parameters()):
        model.zero_grad()
        edges = architect.penalised_edges(supernet.normal_selected_idxs, first_only=False)
        loss = F.cross_entropy(model(valid[0]), valid[1])
        (loss + architect.complexity(supernet.alphas_normal, edges)).backward()
        alphas_optimizer.step()
    model.zero_grad()
    F.cross_entropy(model(train[0]), train[1]).backward()
    nn.utils.clip_grad_norm_(supernet.weight_parameters(), GRAD_CLIP)
    optimizer.step()


# ---------------------------------------------------------------- the fixed network


def _auto_fernet(setup: Setup, auxiliary: bool) -> Network:
    genotype = resolve_genotype("Auto_FERNet")
    return Network(setup.channels, len(CLASSES), setup.layers, auxiliary, genotype)


def training_step(setup: Setup) -> Step:
    """A training step of Auto_FERNet with its auxiliary head."""
    return _training_step(_auto_fernet(setup, True), setup)


def decided_step(setup: Setup) -> Step:
    """A training step of the network whose cells a supernet has decided on, without a head."""
    model = build_supernet(setup._replace(decisions=DECISIONS))
    scores = architect.score_cells(model, {"normal": [], "reduce": []}, use_history=False)
    genotype = architect.derive_genotype(model, scores)
    network = Network(setup.channels, len(CLASSES), setup.layers, False, genotype)
    return _training_step(network, setup)


def _training_step(network: Network, setup: Setup) -> Step:
    batch = _batch(setup.batch, CROP, setup.device)
    model = (PlainNetwork(network).train() if setup.side == "plain" else network).to(setup.device)
    optimizer = sgd(model.parameters())
    if setup.side == "plain":
        return Step(lambda: _plain_training_step(model, optimizer, *batch), setup.batch)
    forward = compiled(model, setup.batch) if setup.side == "compiled" else model

    options = {"precision": setup.precision, "forward": forward}
    return Step(lambda: train_on(model, optimizer, [batch], **options), setup.batch)


def _plain_training_step(
    model: PlainNetwork, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    optimizer.zero_grad()
    logits, auxiliary_logits = model(images)
    loss = F.cross_entropy(logits, labels)
    if auxiliary_logits is not None:
        loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(auxiliary_logits, labels)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
    optimizer.step()


def evaluation_step(setup: Setup) -> Step:
    """The logits of a batch of whole images, in evaluation mode."""
    network = _auto_fernet(setup, False).to(setup.device)
    images = torch.randint(0, 256, (setup.batch, 1, 48, 48), dtype=torch.uint8)
    split = Split(images, torch.zeros(setup.batch, dtype=torch.int64)).map(
        lambda t: t.to(setup.device)
    )
    if setup.side == "plain":
        model = PlainNetwork(network).eval()
        return Step(torch.no_grad()(lambda: model(split.images.float() / 255)), setup.batch)
    predict = network_predictor(network)

    def run() -> None:
        evaluate(predict, split, batch_size=setup.batch, precision=setup.precision, stop=Stop())

    return Step(run, setup.batch)


# ---------------------------------------------------------------- data and labels


def data_step(setup: Setup) -> Step:
    """A pass over augmented faces; plain: each decoded and transformed by PIL, one by one."""
    drawn = synthetic.draw_fer2013(counts={"Training": setup.sample})["Training"]
    if setup.side == "plain":
        jpegs = [encode(image) for image in drawn.images]

        def run() -> None:
            batches = through_pil(jpegs, setup.batch)
            exhaust((images.to(setup.device) for images in batches), setup.device)
    else:
        split = drawn.map(lambda tensor: tensor.to(setup.device))

        def run() -> None:
            exhaust(augmented(split, setup.batch), setup.device)

    return Step(run, setup.sample)


def relabel_step(setup: Setup) -> Step:
    """The new labels of a batch with FES; plain: label by label in Python."""
    logits = torch.randn(setup.batch, len(CLASSES)).to(setup.device)
    labels = torch.randint(0, len(CLASSES), (setup.batch,)).to(setup.device)
    fes = torch.tensor(TRAINING_FES, dtype=torch.float32, device=setup.device)
    rule = label_by_label if setup.side == "plain" else relabel
    # Ours is too short for a clock.
    repeats = 1 if setup.side == "plain" else 100
    return Step(lambda: rule(logits, labels, fes=fes, **RELABEL), setup.batch, repeats)


WORKS = {
    "search": search_step,
    "train": training_step,
    "decided": decided_step,
    "evaluate": evaluation_step,
    "data": data_step,
    "relabel": relabel_step,
}
