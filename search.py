"""Search the cells of the network on FER2013 by SGAS, a greedy form of DARTS.

    python search.py --batch_size 24 --batch_increase 8 --learning_rate 0.025

Writes a run folder below --model_path: `log.txt`, `metrics.csv` (a row an epoch), `alphas.csv`
(alphas, criteria and state of every edge after every epoch), `checkpoint.pt` (what --resume goes
on from), and at the end `genotype.txt` (which `--arch` of the other scripts reads, as it does the
folder), the pictures `normal.png`, `reduction.png`, `alphas_normal.png`, `alphas_reduce.png`,
`decisions.png`, `curves.png`, and `summary.json`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import architect
from architect import Batch
from common import arguments, cli, ranks
from common.checkpoints import (
    check_edges,
    load_optimizer,
    parts_of,
    rebuild_supernet,
    restore_state,
)
from common.search_report import describe_edges, report_search
from data.augment import Augmentation, count_batches, spread, training_batches
from data.fer2013 import CLASSES, Split, load_fer2013
from data.halves import alphas_batches, search_halves
from engine import (
    TrainState,
    autocast,
    cosine,
    evaluate,
    format_record,
    report_step,
    require_finite,
)
from genotypes import PRIMITIVES, format_genotype
from model_search import CELLS, EDGES, OPEN, Network
from utils import (
    LOGGER_NAME,
    Interrupted,
    Meter,
    Stop,
    create_run_folder,
    describe_machine,
    load_checkpoint,
    open_log,
    save_checkpoint,
    seed_everything,
    stop_on_signals,
    write_rows,
)

_log = logging.getLogger(LOGGER_NAME)

JITTER = 0.5  # of brightness and contrast, as published for the search


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            arguments.common_parser(batch_size=24, batch_why="the published value", seed=2),
            arguments.folder_parser(label="search"),
            arguments.run_parser(script="search.py"),
            arguments.sgd_parser(
                learning_rate=0.025,
                why="the published value",
                drop_path_prob=0.3,
                drop_path_why="the published value, which the published supernet never used; "
                "neither does ours, and the flag is here for the published command lines alone",
            ),
        ],
    )
    # fmt: off
    add = parser.add_argument_group("the supernet").add_argument
    add("--init_channels", type=arguments.positive_int, default=16, metavar="C",
        help="channels of the first cell (default: 16, the published value)")
    add("--layers", type=arguments.positive_int, default=8, metavar="L",
        help="cells (default: 8, the published value)")
    add = parser.add_argument_group("the search").add_argument
    add("--epochs", type=arguments.positive_int, metavar="N",
        help="epochs (default: warmup_dec_epoch + 7 * decision_freq + 6, 50 as published, which "
        "decides every edge; with fewer the most important open edges fill the genotype)")
    add("--batch_increase", type=arguments.count, default=8, metavar="N",
        help="images that each decision adds to a step (default: 8, the published value)")
    add("--learning_rate_min", type=arguments.positive_float, default=0.001, metavar="RATE",
        help="where the cosine of the learning rate ends (default: 0.001, the published value)")
    add("--train_portion", type=arguments.fraction, default=0.5, metavar="P",
        help="share of the images that trains the weights, the rest training the alphas "
        "(default: 0.5, the published value)")
    add("--unrolled", action=argparse.BooleanOptionalAction, default=False,
        help="second-order gradient of the alphas, which makes a step about 2.5 times as long "
        "(default: off, as published)")
    add("--arch_learning_rate", type=arguments.positive_float, default=3e-4, metavar="RATE",
        help="learning rate of Adam on the alphas (default: 3e-4, the published value)")
    add("--arch_weight_decay", type=arguments.non_negative, default=1e-3, metavar="W",
        help="weight decay of the alphas (default: 1e-3, the published value)")
    add("--warmup_dec_epoch", type=arguments.count, default=9, metavar="N",
        help="epochs before the one with the first decision (default: 9, the published value)")
    add("--decision_freq", type=arguments.positive_int, default=5, metavar="N",
        help="epochs from a decision to the next (default: 5, the published value)")
    add("--use_history", action=argparse.BooleanOptionalAction, default=False,
        help="SGAS criterion 2, which counts stability (default: off, criterion 1 as published)")
    add("--history_size", type=arguments.positive_int, default=4, metavar="N",
        help="epochs that stability looks back (default: 4, the published value)")
    add("--post_val", action=argparse.BooleanOptionalAction, default=False,
        help="evaluate again after each decision (default: off, as published)")
    # fmt: on
    return parser


@dataclass
class SearchState(TrainState):
    """A search's progress: also what was decided, and what it rests on.

    `past`: the last epochs' `EdgeScores.probs` of each cell; `rows`: every edge after every epoch.
    """

    past: dict[str, list[Tensor]] = field(default_factory=lambda: {cell: [] for cell in CELLS})
    decisions: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A checkpoint's word, which may be anybody's.
        scored = [probs for cell in CELLS for probs in self.past[cell]]
        if not all(probs.shape == (len(EDGES), len(PRIMITIVES) - 1) for probs in scored):
            raise ValueError("a past of other edges")
        if not all(d["cell"] in CELLS and 0 < d["epoch"] <= self.epoch for d in self.decisions):
            raise ValueError("a decision of no epoch")


def search_one_epoch(
    model: Network,
    batches: Iterable[tuple[Batch, Batch | None]],
    optimizer: torch.optim.Optimizer,
    alphas_optimizer: torch.optim.Optimizer,
    *,
    alphas_gradient: Callable[[Batch, Batch], list[Tensor]],
    state: SearchState,
    steps: int,
    grad_clip: float,
    precision: torch.autocast,
    report_freq: int,
    stop: Stop,
) -> Meter:
    """Step the alphas, then the weights, on each pair (batch for the weights, for the alphas).

    The second is None where no edge is open, so that no alpha has anything to learn. Each rank
    takes its share of both, and all step along the mean gradients.
    """
    model.train()
    weights = model.weight_parameters()
    meter = Meter(weights[0].device, state.sums)
    title = f"epoch {state.epoch + 1}"
    first, hidden = state.step, ranks.hidden()
    bar = tqdm(batches, title, steps, initial=first, leave=False, disable=hidden, unit="step")
    for train, valid in bar:
        share = ranks.own_share(len(train[1]))
        images, labels = (each[share.rows] for each in train)
        if valid is not None:
            valid_share = ranks.own_share(len(valid[1]))
            others, answers = (each[valid_share.rows] for each in valid)
            gradients = alphas_gradient((images, labels), (others, answers))
            ranks.average(gradients, valid_share.weight)
            architect.step_alphas(model, alphas_optimizer, gradients)
        optimizer.zero_grad(set_to_none=True)
        with architect.held(model.arch_parameters()):
            with precision:
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
        ranks.average_step(model, share.weight)
        nn.utils.clip_grad_norm_(weights, grad_clip)
        optimizer.step()
        if share.count:
            meter.update(loss, logits, labels)
        state.step += 1
        if state.step % report_freq == 0:
            report_step(model, meter, state, steps)
        if stop.reason:
            break
    state.sums = meter.totals()
    return meter


def search(
    model: Network,
    optimizer: torch.optim.Optimizer,
    alphas_optimizer: torch.optim.Optimizer,
    train: Split,
    valid: Split,
    *,
    alphas_gradient: Callable[[Batch, Batch], list[Tensor]],
    state: SearchState,
    epochs: int,
    batch_size: int,
    batch_increase: int,
    augmentation: Augmentation,
    learning_rate_at: Callable[[int], float],
    decides_at: Callable[[int], bool],
    use_history: bool,
    history_size: int,
    post_val: bool,
    grad_clip: float,
    seed: int,
    precision: torch.autocast,
    report_freq: int,
    limit_batches: int | None,
    save: Callable[[], None],
    stop: Stop,
) -> None:
    """Search from `state` to `epochs` epochs, deciding an edge of each cell where `decides_at` is.

    `save()` is called at the start, after every epoch and when `stop` interrupts one. Raises
    Interrupted and UserError as `engine.fit`.
    """
    ranks.align(model)
    if state.epoch == state.step == 0:
        save()
    while state.epoch < epochs:
        epoch, started = state.epoch, time.monotonic()
        size = batch_size + batch_increase * len({d["epoch"] for d in state.decisions})
        steps = count_batches(len(train.images), size, limit_batches)
        optimizer.param_groups[0]["lr"] = learning_rate_at(epoch)
        drawn = {"batch_size": size, "augmentation": augmentation, "seed": seed, "epoch": epoch}
        batches = training_batches(train, **drawn, first_step=state.step, limit=limit_batches)
        any_open = any(OPEN in model.states[cell] for cell in CELLS)
        others = alphas_batches(valid, **drawn, step=state.step) if any_open else repeat(None)
        meter = search_one_epoch(
            model,
            zip(batches, others, strict=False),
            optimizer,
            alphas_optimizer,
            alphas_gradient=alphas_gradient,
            state=state,
            steps=steps,
            grad_clip=grad_clip,
            precision=precision,
            report_freq=report_freq,
            stop=stop,
        )
        loss, accuracy = meter.read()
        require_finite(model, loss, f"epoch {epoch + 1}")
        record: dict[str, Any] = {
            "epoch": epoch + 1,
            "lr": learning_rate_at(epoch),
            "batch_size": size,
            "train_loss": loss,
            "train_accuracy": accuracy,
        }

        def validate(name: str, size: int = size) -> dict[str, float]:
            part = spread(valid, limit_batches and limit_batches * size)
            model.eval()
            scores = evaluate(
                model, part, batch_size=size, precision=precision, stop=stop, title=name
            )
            return {f"{name}_loss": scores.loss, f"{name}_accuracy": scores.accuracy}

        states = model.states
        try:
            if stop.reason:
                raise Interrupted(stop)
            record |= validate("valid")
            scores = architect.score_cells(model, state.past, use_history=use_history)
            decisions = architect.decide(model, scores) if decides_at(epoch) else []
            if decisions and post_val:
                record |= validate("post_valid")
        except Interrupted:
            # Decided again, alike, when the run is resumed.
            model.set_states(**states)
            state.seconds += time.monotonic() - started
            save()
            raise
        for decision in decisions:
            _log.info("decided: %(cell)s edge %(edge)d %(primitive)s, pruned %(pruned)s", decision)
            state.decisions.append({"epoch": epoch + 1, **decision})
        _log.info("%s", format_genotype(architect.derive_genotype(model, scores)))
        for cell in CELLS:
            state.rows += describe_edges(
                epoch + 1, cell, model.alphas[cell], scores[cell], model.states[cell]
            )
            state.past[cell] = [*state.past[cell], scores[cell].probs][-history_size:]
        record["open_edges"] = sum(s == OPEN for cell in CELLS for s in model.states[cell])
        state.end_epoch(record, started)
        _log.info("%s", format_record(record, epochs))
        save()


def main(args: argparse.Namespace) -> dict[str, Any]:
    log = open_log()
    device = cli.resolve_device(args.device, args.gpu)
    precision = autocast(device, args.amp)
    splits = load_fer2013(args.data, report=log.info)
    halves = search_halves(
        splits, protocol=args.protocol, train_portion=args.train_portion, seed=args.seed
    )
    train, valid = (half.map(lambda t: t.to(device)) for half in halves)
    epochs = args.epochs or architect.count_epochs(args.warmup_dec_epoch, args.decision_freq)

    seed_everything(args.seed)
    if args.resume is None:
        run, state = create_run_folder(args.model_path, args.save, "search"), SearchState()
        description = {"C": args.init_channels, "num_classes": len(CLASSES), "layers": args.layers}
        model = Network(**description)
    else:
        run = Path(args.resume)
        path = run / "checkpoint.pt"
        resumed = load_checkpoint(path, ["search"])
        with parts_of(path):
            state, description = restore_state(SearchState, resumed["state"]), resumed["model"]
            model = rebuild_supernet(description, resumed["state_dict"], path)
            check_edges(resumed["edges"])
            model.set_states(**resumed["edges"])
    log = open_log(run)
    model = model.to(device)
    optimizer = torch.optim.SGD(
        model.weight_parameters(),
        args.learning_rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
    )
    alphas_optimizer = torch.optim.Adam(
        model.arch_parameters(),
        args.arch_learning_rate,
        betas=(0.5, 0.999),
        weight_decay=args.arch_weight_decay,
    )
    if args.resume is not None:
        load_optimizer(optimizer, resumed, path)
        load_optimizer(alphas_optimizer, resumed, path, "alphas_optimizer")
    log.info("%s", describe_machine(device))
    log.info(
        "run folder %s, %d epochs, %d images for the weights, %d for the alphas",
        run, epochs, len(train.labels), len(valid.labels),
    )  # fmt: skip

    def save() -> None:
        if state.step == 0 and state.history:
            write_rows(state.history, run / "metrics.csv")
            write_rows(state.rows, run / "alphas.csv")
        # Last, so that whatever a killed run has not written is written again when it resumes.
        save_checkpoint(
            run / "checkpoint.pt",
            "search",
            {"model": description, "state_dict": model.state_dict(),
             "edges": model.states, "optimizer": optimizer.state_dict(),
             "alphas_optimizer": alphas_optimizer.state_dict(), "state": state.to_dict(),
             "args": vars(args)},
        )  # fmt: skip

    def penalty() -> Tensor:
        edges = architect.penalised_edges(
            model.normal_selected_idxs, first_only=args.protocol == "paper"
        )
        return architect.complexity(model.alphas_normal, edges)

    def alphas_gradient(on: Batch, after: Batch) -> list[Tensor]:
        if not args.unrolled:
            return architect.first_order_gradient(
                model, after, penalty=penalty, precision=precision
            )
        weights = model.weight_parameters()
        return architect.second_order_gradient(
            model,
            on,
            after,
            penalty=penalty,
            precision=precision,
            learning_rate=optimizer.param_groups[0]["lr"],
            momentum=args.momentum,
            weight_decay=args.weight_decay,
            momentum_buffers=[optimizer.state.get(w, {}).get("momentum_buffer") for w in weights],
        )

    with stop_on_signals(args.time_limit) as stop:
        search(
            model,
            optimizer,
            alphas_optimizer,
            train,
            valid,
            alphas_gradient=alphas_gradient,
            state=state,
            epochs=epochs,
            batch_size=args.batch_size,
            batch_increase=args.batch_increase,
            augmentation=arguments.augmentation(args, jitter=JITTER),
            learning_rate_at=lambda epoch: cosine(
                epoch / epochs, args.learning_rate, args.learning_rate_min
            ),
            decides_at=lambda epoch: architect.is_decision_epoch(
                epoch, args.warmup_dec_epoch, args.decision_freq
            ),
            use_history=args.use_history,
            history_size=args.history_size,
            post_val=args.post_val,
            grad_clip=args.grad_clip,
            seed=args.seed,
            precision=precision,
            report_freq=args.report_freq,
            limit_batches=args.limit_batches,
            save=save,
            stop=stop,
        )
        # Still in the block: a signal from here on lets it finish, as seconds do.
        scores = architect.score_cells(model, state.past, use_history=args.use_history)
        return report_search(
            run,
            architect.derive_genotype(model, scores),
            history=state.history,
            rows=state.rows,
            decisions=state.decisions,
            validation_images=len(valid.labels),
            limit_batches=args.limit_batches,
            about={
                "script": args.script,
                "protocol": args.protocol,
                "seed": args.seed,
                "parameters": sum(p.numel() for p in model.parameters()),
            },
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
