"""One side of one measurement, in a process of its own so that its peak memory is its own.

    python -m tools.benchmark_step search --side ours

Prints one line of JSON: the seconds of every step after the first, the images of a step, and the
peak memory in bytes. `python -m tools.benchmark` runs it, side by side.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import architect
import search
from data.fer2013 import CLASSES, Split
from engine import TrainState, autocast, compiled, evaluate, network_predictor, train_one_epoch
from genotypes import resolve_genotype
from model import Network
from model_search import Network as Supernet
from tools import cli, parsers
from tools.plain import PlainNetwork, PlainSupernet
from utils import LOGGER_NAME, Stop, seed_everything

SIDES = ("plain", "ours", "compiled")
CROP = 44  # what a training image is cropped to; evaluation sees all 48
GRAD_CLIP = 5.0
AUXILIARY_WEIGHT = 0.4


class Sizes(NamedTuple):
    """Of a network and a batch."""

    channels: int
    layers: int
    batch: int
    decisions: int


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_step", description=(__doc__ or "").split("\n")[0]
    )
    # fmt: off
    add = parser.add_argument
    add("work", choices=list(WORKS), help="what to measure")
    add("--side", choices=SIDES, default="ours",
        help="the plain version, ours, or ours with --compile (default: ours)")
    add("--init_channels", type=parsers.positive_int, default=16, metavar="C",
        help="channels of the first cell (default: 16, the published value of the search)")
    add("--layers", type=parsers.positive_int, default=8, metavar="L",
        help="cells (default: 8, likewise)")
    add("--batch_size", type=parsers.positive_int, default=24, metavar="N",
        help="images a step (default: 24, likewise)")
    add("--decisions", type=parsers.count, default=0, metavar="N",
        help="edges of each cell that the search has decided, at most 8 (default: 0, all open)")
    add("--steps", type=parsers.positive_int, default=2, metavar="N",
        help="steps to measure after a first one (default: 2, the slowest takes 20 s)")
    add("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps",
        help="where to compute (default: auto, which takes CUDA, then MPS, then the CPU)")
    add("--amp", choices=["auto", "off", "bf16"], default="off",
        help="precision of the forward pass (default: off, what the plain version has)")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print the line of JSON."""
    logging.getLogger(LOGGER_NAME).setLevel(logging.ERROR)
    device = cli.resolve_device(args.device, None)
    if args.side != "plain":
        cli.keep_freed_memory()
    seed_everything(0)
    sizes = Sizes(args.init_channels, args.layers, args.batch_size, args.decisions)
    step = WORKS[args.work](args.side, sizes, device, autocast(device, args.amp))
    seconds = []
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        step()
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        seconds.append(time.perf_counter() - started)
    found = {"seconds": seconds[1:], "images": args.batch_size, "peak_bytes": _peak_bytes(device)}
    print(json.dumps(found))
    return found


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _batch(size: int, pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # What the images show costs no time, so noise will do.
    labels = torch.randint(0, len(CLASSES), (size,))
    return torch.rand(size, 1, pixels, pixels).to(device), labels.to(device)


# ---------------------------------------------------------------- search


def build_supernet(sizes: Sizes) -> Supernet:
    """A supernet after `sizes.decisions` decisions of the first criterion."""
    model = Supernet(sizes.channels, len(CLASSES), sizes.layers)
    for _ in range(sizes.decisions):
        scores = architect.score_cells(model, {"normal": [], "reduce": []}, use_history=False)
        architect.decide(model, scores)
    return model


def search_step(
    side: str, sizes: Sizes, device: torch.device, precision: torch.autocast
) -> Callable[[], Any]:
    """A step on the alphas, where one is open, and one on the weights."""
    model = build_supernet(sizes).to(device)
    train, valid = (_batch(sizes.batch, CROP, device) for _ in range(2))
    if side == "plain":
        plain = PlainSupernet(model).train()
        return lambda: _plain_search_step(plain, *_optimizers(plain.network), train, valid)
    optimizer, alphas_optimizer = _optimizers(model)
    any_open = sizes.decisions < 8

    def penalty() -> Tensor:
        edges = architect.penalised_edges(model.normal_selected_idxs, first_only=False)
        return architect.complexity(model.alphas_normal, edges)

    return lambda: search.search_one_epoch(
        model,
        [(train, valid if any_open else None)],
        optimizer,
        alphas_optimizer,
        alphas_gradient=lambda _, after: architect.first_order_gradient(
            model, after, penalty=penalty, precision=precision
        ),
        state=search.SearchState(),
        steps=1,
        grad_clip=GRAD_CLIP,
        precision=precision,
        report_freq=2,
        stop=Stop(),
    )


def _optimizers(model: Supernet) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return (
        torch.optim.SGD(model.weight_parameters(), 0.025, momentum=0.9, weight_decay=3e-4),
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


def _network(side: str, sizes: Sizes, auxiliary: bool) -> nn.Module:
    network = Network(
        sizes.channels, len(CLASSES), sizes.layers, auxiliary, resolve_genotype("Auto_FERNet")
    )
    return PlainNetwork(network) if side == "plain" else network


def training_step(
    side: str, sizes: Sizes, device: torch.device, precision: torch.autocast
) -> Callable[[], Any]:
    """A training step of Auto_FERNet with its auxiliary head."""
    return _training_step(_network(side, sizes, True).to(device), side, sizes, device, precision)


def decided_step(
    side: str, sizes: Sizes, device: torch.device, precision: torch.autocast
) -> Callable[[], Any]:
    """A training step of the network whose cells a supernet has decided on, without a head."""
    model = build_supernet(sizes._replace(decisions=8))
    scores = architect.score_cells(model, {"normal": [], "reduce": []}, use_history=False)
    genotype = architect.derive_genotype(model, scores)
    network = Network(sizes.channels, len(CLASSES), sizes.layers, False, genotype)
    network = PlainNetwork(network) if side == "plain" else network
    return _training_step(network.to(device), side, sizes, device, precision)


def _training_step(
    model: nn.Module, side: str, sizes: Sizes, device: torch.device, precision: torch.autocast
) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    batch = _batch(sizes.batch, CROP, device)
    forward = compiled(model, sizes.batch) if side == "compiled" else model
    return lambda: train_one_epoch(
        model,
        [batch],
        optimizer,
        forward=forward,
        state=TrainState(),
        steps=1,
        seed=0,
        learning_rate_at=lambda _: 0.025,
        auxiliary_weight=AUXILIARY_WEIGHT,
        grad_clip=GRAD_CLIP,
        precision=precision,
        report_freq=2,
        stop=Stop(),
    )


def _plain_predictor(model: nn.Module) -> Callable[[Tensor], Tensor]:
    model.eval()
    return lambda images: model(images)[0]


def evaluation_step(
    side: str, sizes: Sizes, device: torch.device, precision: torch.autocast
) -> Callable[[], Any]:
    """The logits of a batch of whole images, in evaluation mode."""
    model = _network(side, sizes, False).to(device)
    images = torch.randint(0, 256, (sizes.batch, 1, 48, 48), dtype=torch.uint8)
    split = Split(images, torch.zeros(sizes.batch, dtype=torch.int64)).map(lambda t: t.to(device))
    predict = network_predictor(model) if side != "plain" else _plain_predictor(model)
    return lambda: evaluate(
        predict, split, batch_size=sizes.batch, precision=precision, stop=Stop()
    )


WORKS = {
    "search": search_step,
    "train": training_step,
    "decided": decided_step,
    "evaluate": evaluation_step,
}


if __name__ == "__main__":
    main(build_parser().parse_args())
