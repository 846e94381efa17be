"""What `benchmarks.speed` times: the steps of our loops, and of a plain implementation of them."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import search
import train_FER2013
from architect import Architect
from benchmarks.plain import PlainNetwork, PlainSupernet, pil_batches, plain_relabel
from common import arguments
from data.augment import CROP, Augmentation
from data.batches import training_batches
from data.synthetic.fer2013 import draw_fer2013
from data.types import CLASSES, Split
from engine import TrainState, build_optimizer, evaluate, network_predictor, train_one_epoch
from genotypes import Auto_FERNet, Genotype
from model import Network
from model_search import CELLS, NODES, OPEN
from model_search import Network as Supernet
from recipe.compiling import compiled
from recipe.schedules import DropPath
from relabelling import TRAINING_FES, relabel
from runtime.run import Run
from sgas import decide, derive_genotype, score_cells

Batch = tuple[Tensor, Tensor]
Step = tuple[Callable[[], Any], int]  # what is timed, and the number of its images

# The published sizes; the search has them as defaults.
SIZES = {"search": [], "train": ["--batch_size", "24"]}
SHORT = "--init_channels 4 --layers 3 --batch_size 8".split()
SAMPLE, SHORT_SAMPLE = 4000, 200  # images that a pass over the data augments
LABELS, BATCHES = 512, 20  # that are relabelled
RELABEL = {"threshold": 0.2, "fes_threshold": 0.03}
AUGMENTATION = Augmentation(jitter=0.5)  # as published for the search and for CK+
DECISIONS = 2 * NODES  # until no edge of a cell is open


class Setup(NamedTuple):
    """A variant, its sizes and where it is computed."""

    variant: str
    short: bool
    device: torch.device
    precision: torch.autocast

    @property
    def compiles(self) -> bool:
        """Whether the variant has --compile: of training "compiled", of the search "captured"."""
        return self.variant.endswith(("compiled", "captured"))

    def args(self, script: str, batch_size: int | None = None) -> argparse.Namespace:
        """The command line of `script`, "search" or "train", in these sizes or `batch_size`."""
        parser = {"search": search, "train": train_FER2013}[script].build_parser()
        parser.set_defaults(**arguments.RECIPES.get(self.variant.partition(",")[0], {}))
        larger = ["--batch_size", str(batch_size)] if batch_size else []
        words = SHORT if self.short else [*SIZES[script], *larger]
        return parser.parse_args([*words, "--compile"] if self.compiles else words)

    def run(self) -> Run:
        """A run without a folder."""
        return Run(Path(), self.device, self.precision)

    def batch(self, size: int) -> Batch:
        """Random images, float32 (size, 1, CROP, CROP), and labels, int64 (size,)."""
        labels = torch.randint(0, len(CLASSES), (size,))
        return torch.rand(size, 1, CROP, CROP).to(self.device), labels.to(self.device)


class Case(NamedTuple):
    """What builds the step of a variant, and by variant the one that it is compared with."""

    build: Callable[[Setup], Step]
    variants: dict[str, str | None]


# --- the search


def build_supernet(args: argparse.Namespace, decisions: int) -> Supernet:
    """A supernet of which `decisions` edges of each cell are decided by criterion 1."""
    model = Supernet(args.init_channels, len(CLASSES), args.layers, args.partial_channels)
    for _ in range(decisions):
        decide(model, score_cells(model, {cell: [] for cell in CELLS}, use_history=False))
    return model


def search_step(setup: Setup, decisions: int) -> Step:
    """A step on the alphas, if an edge is open, and one on the weights."""
    if setup.variant == "fixed network":
        return decided_step(setup)
    args = setup.args("search")
    if setup.variant == "partial channels":
        args.partial_channels = 4
    model = build_supernet(args, decisions).to(setup.device)
    train, valid = setup.batch(args.batch_size), setup.batch(args.batch_size)
    if setup.variant == "plain":
        plain = PlainSupernet(model).train()
        architect = Architect(plain.network, args, setup.precision)
        weights = build_optimizer(plain.network.weight_parameters(), args)

        def both_steps() -> None:
            """As in DARTS: every gradient is computed each time, and half of them used."""
            if any(alpha.requires_grad for alpha in plain.network.arch_parameters()):
                plain.zero_grad()
                (F.cross_entropy(plain(valid[0]), valid[1]) + architect.penalty()).backward()
                architect.optimizer.step()
            plain.zero_grad()
            F.cross_entropy(plain(train[0]), train[1]).backward()
            nn.utils.clip_grad_norm_(plain.network.weight_parameters(), args.grad_clip)
            weights.step()

        return both_steps, args.batch_size
    state = search.SearchState(model, args, setup.precision)
    state.graphs.begin(args.batch_size, model.states)
    any_open = any(OPEN in states for states in model.states.values())
    step = partial(search.search_one_epoch, state, [(train, valid if any_open else None)], args)
    return lambda: step(setup.run(), 1), args.batch_size


# --- the fixed network


def _network(args: argparse.Namespace, auxiliary: bool, genotype: Genotype) -> Network:
    return Network(args.init_channels, len(CLASSES), args.layers, auxiliary, genotype)


def training_step(setup: Setup, batch_size: int | None = None) -> Step:
    """A training step of Auto_FERNet with its auxiliary head."""
    args = setup.args("train", batch_size)
    return _training_step(_network(args, True, Auto_FERNet), args, setup)


def decided_step(setup: Setup) -> Step:
    """A training step of the fixed network of a supernet's decisions, without auxiliary head."""
    sizes = setup.args("search")
    model = build_supernet(sizes, DECISIONS)
    scores = score_cells(model, {cell: [] for cell in CELLS}, use_history=False)
    args = argparse.Namespace(**{**vars(setup.args("train")), "batch_size": sizes.batch_size})
    return _training_step(_network(sizes, False, derive_genotype(model, scores)), args, setup)


def _training_step(network: Network, args: argparse.Namespace, setup: Setup) -> Step:
    images, labels = setup.batch(args.batch_size)
    if setup.variant == "plain":
        plain = PlainNetwork(network).train().to(setup.device)
        optimizer = build_optimizer(plain.parameters(), args)

        def step() -> None:
            optimizer.zero_grad()
            logits, auxiliary_logits = plain(images)
            loss = F.cross_entropy(logits, labels)
            if auxiliary_logits is not None:
                loss = loss + args.auxiliary_weight * F.cross_entropy(auxiliary_logits, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), args.grad_clip)
            optimizer.step()

        return step, args.batch_size
    train = TrainState(network.to(setup.device), args, DropPath(0, args.epochs, 0.0))
    epoch = partial(train_one_epoch, train, [(images, labels)], args, setup.run())
    forward = compiled(network, args.batch_size, setup.device) if args.compile else network
    return partial(epoch, steps=1, forward=forward), args.batch_size


def evaluation_step(setup: Setup, batch_size: int | None = None) -> Step:
    """The logits of a batch of whole images, in evaluation mode."""
    args = setup.args("train", batch_size)
    network = _network(args, False, Auto_FERNet).to(setup.device)
    images = torch.randint(0, 256, (args.batch_size, 1, 48, 48), dtype=torch.uint8)
    labels = torch.zeros(args.batch_size, dtype=torch.int64)
    split = Split(images, labels).to(setup.device)
    if setup.variant == "plain":
        plain = PlainNetwork(network).eval()
        return torch.no_grad()(lambda: plain(split.images.float() / 255)), args.batch_size
    predict, run = network_predictor(network), setup.run()
    return lambda: evaluate(predict, split, args.batch_size, run), args.batch_size


# --- data and labels


def data_step(setup: Setup) -> Step:
    """A pass over augmented images; plain: decoded and transformed by PIL one at a time."""
    count = SHORT_SAMPLE if setup.short else SAMPLE
    drawn = draw_fer2013(counts={"Training": count})["Training"]
    size = setup.args("train").batch_size
    if setup.variant == "plain":
        jpegs = []
        for image in drawn.images[:, 0].numpy():
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "JPEG", quality=92)
            jpegs.append(stream.getvalue())
        batches = partial(pil_batches, jpegs, size, AUGMENTATION)
        return lambda: [images.to(setup.device) for images in batches()][-1], count
    split = drawn.to(setup.device)
    drawing: dict[str, Any] = {"augmentation": AUGMENTATION, "seed": 0, "epoch": 0}
    return lambda: list(training_batches(split, batch_size=size, **drawing))[-1], count


def relabel_step(setup: Setup) -> Step:
    """The new labels of batches with FES; plain: label by label in Python."""
    logits = torch.randn(LABELS, len(CLASSES)).to(setup.device)
    labels = torch.randint(0, len(CLASSES), (LABELS,)).to(setup.device)
    fes = torch.tensor(TRAINING_FES, dtype=torch.float32, device=setup.device)
    rule = plain_relabel if setup.variant == "plain" else relabel
    new = partial(rule, logits, labels, fes=fes, **RELABEL)
    return lambda: [new() for _ in range(BATCHES)], BATCHES * LABELS


# --- the cases

_PAIR: dict[str, str | None] = {"plain": None, "ours": "plain"}
_BF16 = {**_PAIR, "bf16": "plain"}
_SEARCH = {**_BF16, "partial channels": "ours"}
CASES = {
    "search step, all edges open": Case(partial(search_step, decisions=0), _SEARCH),
    "search step, half of the edges decided": Case(partial(search_step, decisions=NODES), _SEARCH),
    "search step, all edges decided": Case(
        partial(search_step, decisions=DECISIONS), {**_SEARCH, "fixed network": "ours"}
    ),
    "search step, recipe": Case(
        partial(search_step, decisions=0), {"laptop": None, "laptop, bf16": "laptop"}
    ),
    "training step": Case(training_step, _BF16),
    "evaluation": Case(evaluation_step, _BF16),
    "augmentation": Case(data_step, _PAIR),
    "relabelling": Case(relabel_step, _PAIR),
}
_GPU: dict[str, str | None] = {"fp32": None, "bf16": "fp32"}
_COMPILED = {**_GPU, "bf16, compiled": "bf16"}
_CAPTURED = {**_GPU, "fp32, captured": "fp32", "bf16, captured": "bf16"}
GPU_CASES = {
    **{
        f"training step, batch {size}": Case(partial(training_step, batch_size=size), _COMPILED)
        for size in (24, 64, 128, 256, 512)
    },
    **{f"GPU {name}": Case(CASES[name].build, _CAPTURED) for name in CASES if "edges" in name},
    "evaluation, batch 512": Case(partial(evaluation_step, batch_size=512), _GPU),
}
ALL_CASES = {**CASES, **GPU_CASES}
