"""Search the cells of the network on FER2013 by SGAS, a greedy form of DARTS.

    python search.py --batch_size 24 --batch_increase 8 --learning_rate 0.025

Writes a run folder below --model_path: `log.txt`, `metrics.csv` (one row per epoch), `alphas.csv`
(alphas, criteria and state of every edge after every epoch), `checkpoint.pt` (which --resume
continues), and at the end `genotype.txt` (which `--arch` of the other scripts reads, as it does the
folder), the pictures `normal.png`, `reduction.png`, `alphas_normal.png`, `alphas_reduce.png`,
`decisions.png`, `curves.png`, and `summary.json`.
"""

from __future__ import annotations

import argparse
import sys
from argparse import BooleanOptionalAction
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from runtime.startup import prepare

prepare()  # before torch is imported

import torch
from torch import Tensor
from torch.nn import functional as F

from architect import Architect, frozen, take_shard
from common import arguments
from common.cli import run_script
from common.report import write_running_page
from common.search_report import describe_decision, describe_edges, report_search
from common.start import check_inputs, start_run
from data.augment import resize
from data.batches import count_batches, subsample, training_batches
from data.halves import alphas_batches, search_halves
from data.sets import load_set
from data.types import Split
from engine import (
    build_augmentation,
    build_optimizer,
    evaluate,
    image_limit,
    load_optimizer,
    optimizer_step,
    report_step,
    require_finite,
    set_learning_rate,
)
from genotypes import format_genotype
from model_search import CELLS, OPEN, Network
from recipe.compiling import Batch, StepGraphs, graph_capture
from recipe.schedules import cosine
from runtime.errors import UserError, reading
from runtime.files import write_rows
from runtime.logs import log
from runtime.processes import broadcast_model, shard
from runtime.run import Progress, Run, progress_bar, recorded_epoch
from runtime.stop import Interrupted
from sgas import count_epochs, decide, derive_genotype, is_decision_epoch, score_cells
from utils import AverageMeter, load_state, save_checkpoint

JITTER = 0.5  # of brightness and contrast, as published for the search


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("the supernet").add_argument
    add("--init_channels", type=arguments.channels, default=16, metavar="C",
        help="channels of the first cell")
    add("--layers", type=arguments.cells, default=8, metavar="L", help="cells")
    add("--partial_channels", type=arguments.positive_int, default=1, metavar="K",
        help="let 1/K of the channels through the primitives, the others around them (PC-DARTS, "
        "K = 4); divides --init_channels")
    add = parser.add_argument_group("the search").add_argument
    add("--recipe", choices=["paper", "laptop"], default="paper",
        help=f"other defaults; {arguments.describe_recipe('laptop')}")
    add("--size", type=arguments.image_size, metavar="S",
        help="resize the 44x44 crops, and in evaluation the whole images, to S pixels per side; "
        "a multiple of 4 (default: no resizing)")
    add("--epochs", type=arguments.positive_int, metavar="N",
        help="epochs; with fewer than decide every edge the most important open edges fill the "
        "genotype (default: warmup_dec_epoch + 7 * decision_freq + 6, 50 as published)")
    add("--batch_increase", type=arguments.count, default=8, metavar="N",
        help="images that each decision adds to a step")
    add("--learning_rate_min", type=arguments.positive_float, default=0.001, metavar="RATE",
        help="end of the cosine of the learning rate")
    add("--train_portion", type=arguments.fraction, default=0.5, metavar="P",
        help="share of the images that trains the weights, the rest training the alphas")
    add("--unrolled", action=BooleanOptionalAction, default=False,
        help="second-order gradient of the alphas, which makes a step about 2.5 times as long")
    add("--arch_learning_rate", type=arguments.positive_float, default=3e-4, metavar="RATE",
        help="learning rate of Adam on the alphas")
    add("--arch_weight_decay", type=arguments.non_negative, default=1e-3, metavar="W",
        help="weight decay of the alphas")
    add("--arch_warmup_epochs", type=arguments.count, default=0, metavar="N",
        help="first epochs, in which only the weights are trained, as in PC-DARTS")
    add("--warmup_dec_epoch", type=arguments.count, default=9, metavar="N",
        help="the first edges are decided at the end of epoch N + 1")
    add("--decision_freq", type=arguments.positive_int, default=5, metavar="N",
        help="epochs from a decision to the next")
    add("--use_history", action=BooleanOptionalAction, default=False,
        help="SGAS criterion 2, with stability, instead of criterion 1")
    add("--history_size", type=arguments.positive_int, default=4, metavar="N",
        help="epochs of the past that stability is computed from")
    add("--post_val", action=BooleanOptionalAction, default=False,
        help="evaluate again after each decision")
    add("--drop_path_prob", type=arguments.fraction, default=0.3, metavar="P",
        help="accepted as in the published command; the supernet, as published, has no drop-path")
    add("--compile", action=BooleanOptionalAction, default=False,
        help="run whole batches as CUDA graphs, captured again after each decision; not the "
        "gradient of --unrolled (not measured on a GPU)")
    # fmt: on
    arguments.add_data_arguments(parser, batch_size=24, seed=2)
    arguments.add_folder_arguments(parser)
    arguments.add_run_arguments(parser, "search.py")
    arguments.add_sgd_arguments(parser, learning_rate=0.025)
    # Read by `build_optimizer` and `build_augmentation`; no flags of the search.
    parser.set_defaults(nesterov=False, affine=0.0, erasing=0.0)
    return parser


@dataclass
class SearchProgress(Progress):
    """A search's progress: also its decisions, and what they depend on.

    `past`: the `EdgeScores.probs` of the last epochs by cell; `decisions`: one dict per decided
    edge; `rows`: every edge after every epoch.
    """

    past: dict[str, list[Tensor]] = field(default_factory=lambda: {cell: [] for cell in CELLS})
    decisions: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


class SearchState:
    """All that a search changes: supernet, optimizers of weights and alphas, and progress."""

    def __init__(self, model: Network, args: argparse.Namespace, precision: torch.autocast) -> None:
        self.model = model
        self.precision = precision
        self.weights = model.weight_parameters()
        self.optimizer = build_optimizer(self.weights, args)
        self.graphs = StepGraphs(graph_capture(self.weights[0].device) if args.compile else None)
        self.architect = Architect(model, args, precision, self.graphs)
        self.progress = SearchProgress()

    def weights_gradient(self, batch: Batch) -> list[Any]:
        """Loss and logits of `batch`, and the gradient of each weight, None where unused."""
        images, labels = batch
        self.optimizer.zero_grad(set_to_none=True)
        with frozen(self.model.arch_parameters()), self.precision:
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        return [loss.detach(), logits.detach(), *(weight.grad for weight in self.weights)]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state_dict` continues exactly."""
        return {
            "model": self.model.description,
            "state_dict": self.model.state_dict(),
            "edges": self.model.states,
            "optimizer": self.optimizer.state_dict(),
            "alphas_optimizer": self.architect.optimizer.state_dict(),
            "state": self.progress.to_dict(),
        }

    def load_state_dict(self, checkpoint: Mapping[str, Any], source: Path) -> None:
        """Continue from `checkpoint`, the content of `source`; UserError when it does not fit."""
        with reading(source, "a checkpoint of the same script and version"):
            load_state(self.model, checkpoint["state_dict"], source)
            self.model.set_states(**checkpoint["edges"])
            load_optimizer(self.optimizer, checkpoint["optimizer"])
            load_optimizer(self.architect.optimizer, checkpoint["alphas_optimizer"])
            self.progress = SearchProgress(**checkpoint["state"])


def search_one_epoch(
    state: SearchState,
    batches: Iterable[tuple[Batch, Batch | None]],
    args: argparse.Namespace,
    run: Run,
    steps: int,
) -> AverageMeter:
    """Step the alphas, then the weights, on each pair (batch for the weights, for the alphas).

    The second is None where the alphas are not trained. Each process takes its shard of both, and
    all step along the mean gradients. Images are resized to --size. Returns the meter of the epoch;
    ends early when the run should stop.
    """
    model, progress = state.model, state.progress
    model.train()
    meter = AverageMeter(next(model.parameters()).device, progress.sums)
    title = f"epoch {progress.epoch + 1}"
    for train, valid in progress_bar(batches, title, steps, progress.step, "step"):
        train = (resize(train[0], args.size), train[1])
        if valid is not None:
            valid = (resize(valid[0], args.size), valid[1])
            state.architect.step(train, valid, state.optimizer)
        own, batch = shard(len(train[1])), take_shard(train)
        loss, logits, *gradients = state.graphs.run(state.weights_gradient, batch)
        for weight, gradient in zip(state.weights, gradients, strict=True):
            weight.grad = gradient
        optimizer_step(model, state.optimizer, own.weight, args.grad_clip)
        if own.count:
            meter.update(loss, logits, batch[1])
        progress.step += 1
        report_step(model, meter, progress, steps, args.report_freq)
        if run.stop.requested():
            break
    progress.sums = meter.totals()
    return meter


def search(
    state: SearchState,
    train: Split,
    valid: Split,
    args: argparse.Namespace,
    run: Run,
    save: Callable[[], None],
) -> None:
    """Search to --epochs epochs, deciding an edge of each cell every --decision_freq epochs.

    `train` trains the weights, `valid` the alphas. `save()` is called before the
    first step of an epoch, after every epoch, and when the run stops in one. Raises Interrupted and
    UserError as `engine.fit`.
    """
    model, progress = state.model, state.progress
    augmentation = build_augmentation(args, JITTER)
    broadcast_model(model)
    if progress.step == 0:
        save()
    while progress.epoch < args.epochs:
        epoch = progress.epoch
        decided_epochs = {decision["epoch"] for decision in progress.decisions}
        batch_size = args.batch_size + args.batch_increase * len(decided_epochs)
        steps = count_batches(len(train.images), batch_size, args.limit_batches)
        learning_rate = cosine(epoch / args.epochs, args.learning_rate, args.learning_rate_min)
        set_learning_rate(state.optimizer, learning_rate)
        loader_args: dict[str, Any] = {
            "batch_size": batch_size,
            "augmentation": augmentation,
            "seed": args.seed,
            "epoch": epoch,
        }
        batches = training_batches(
            train, **loader_args, first_step=progress.step, limit=args.limit_batches
        )
        any_open = any(OPEN in model.states[cell] for cell in CELLS)
        valid_batches: Iterable = repeat(None)
        if any_open and epoch >= args.arch_warmup_epochs:
            valid_batches = alphas_batches(valid, **loader_args, step=progress.step)
        states_before = model.states
        state.graphs.begin(shard(batch_size).count, states_before)
        with recorded_epoch(run, progress, args.epochs, save) as record:
            pairs = zip(batches, valid_batches, strict=False)
            meter = search_one_epoch(state, pairs, args, run, steps)
            loss, accuracy = meter.read()
            require_finite(model, loss, f"epoch {epoch + 1}")
            record |= {
                "lr": learning_rate,
                "batch_size": batch_size,
                "train_loss": loss,
                "train_accuracy": accuracy,
            }
            run.stop.check()
            record |= validate(model, valid, batch_size, args, run, "valid")
            scores = score_cells(model, progress.past, use_history=args.use_history)
            decisions = []
            if is_decision_epoch(epoch, args.warmup_dec_epoch, args.decision_freq):
                decisions = decide(model, scores)
            if decisions and args.post_val:
                try:
                    record |= validate(model, valid, batch_size, args, run, "post_valid")
                except Interrupted:
                    model.set_states(**states_before)  # decided again when the run is resumed
                    raise
            for decision in decisions:
                log.info("decided: %s", describe_decision(decision))
                progress.decisions.append({"epoch": epoch + 1, **decision})
            genotype = format_genotype(derive_genotype(model, scores))
            log.info("%s", genotype)
            for cell in CELLS:
                progress.rows += describe_edges(
                    epoch + 1, cell, model.alphas[cell], scores[cell], model.states[cell]
                )
                past = [*progress.past[cell], scores[cell].probs]
                progress.past[cell] = past[-args.history_size :]
            record["open_edges"] = sum(s == OPEN for cell in CELLS for s in model.states[cell])
            if run.board is not None:
                alphas = {f"alphas/{cell}": model.alphas[cell] for cell in CELLS}
                run.board.write(epoch + 1, {**alphas, "genotype": genotype})


def validate(
    model: Network, valid: Split, batch_size: int, args: argparse.Namespace, run: Run, name: str
) -> dict[str, float]:
    """Loss and accuracy of the supernet on `valid`, resized to --size, at most --limit_batches."""
    part = subsample(valid, image_limit(args, batch_size))
    model.eval()
    scores = evaluate(lambda x: model(resize(x, args.size)), part, batch_size, run, title=name)
    return {f"{name}_loss": scores.loss, f"{name}_accuracy": scores.accuracy}


def save_search(state: SearchState, args: argparse.Namespace, run: Run) -> None:
    """Write what the run folder holds after an epoch: metrics.csv, alphas.csv, checkpoint.pt."""
    progress = state.progress
    # Written first: if killed here, a resumed run writes the files below at its start.
    content = {**state.state_dict(), "args": vars(args), "inputs": run.inputs}
    save_checkpoint(run.folder / "checkpoint.pt", "search", content)
    if progress.step == 0 and progress.history:
        write_rows(progress.history, run.folder / "metrics.csv")
        write_rows(progress.rows, run.folder / "alphas.csv")
        write_running_page(run.folder, args, progress.history, args.epochs)


def main(args: argparse.Namespace) -> dict[str, Any]:
    if args.epochs is None:  # as many as decide every edge
        args.epochs = count_epochs(args.warmup_dec_epoch, args.decision_freq)
    run = start_run(args, "search")
    data = load_set(args.data)
    check_inputs(run, args, data)
    train, valid = search_halves(
        data.to(run.device).splits,
        protocol=args.protocol,
        train_portion=args.train_portion,
        seed=args.seed,
    )
    state = resume_search(run, args) if run.resumed else new_search(run, len(data.classes), args)
    line = "%d epochs, %d images for the weights, %d for the alphas"
    log.info(line, args.epochs, len(train.labels), len(valid.labels))

    with run.interruptible(args.time_limit):
        save = partial(save_search, state, args, run)
        search(state, train, valid, args, run, save)
        scores = score_cells(state.model, state.progress.past, use_history=args.use_history)
        genotype = derive_genotype(state.model, scores)
        parameters = sum(p.numel() for p in state.model.parameters())
        return report_search(genotype, state.progress, len(valid.labels), parameters, args, run)


def new_search(run: Run, classes: int, args: argparse.Namespace) -> SearchState:
    """The search with a supernet that --init_channels, --layers and --partial_channels describe."""
    if args.init_channels % args.partial_channels:
        raise UserError(
            f"--partial_channels {args.partial_channels}: expected a divisor of --init_channels "
            f"{args.init_channels}"
        )
    model = Network(args.init_channels, classes, args.layers, args.partial_channels)
    return SearchState(model.to(run.device), args, run.precision)


def resume_search(run: Run, args: argparse.Namespace) -> SearchState:
    """The search that `run` resumes, as it was."""
    checkpoint, path = run.resumed or {}, run.folder / "checkpoint.pt"
    with reading(path, "a checkpoint of a search"):
        model = Network(**checkpoint["model"])
    state = SearchState(model.to(run.device), args, run.precision)
    state.load_state_dict(checkpoint, path)
    return state


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
