"""What every script that trains leaves in its run folder: checkpoints, weights, the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from common import ranks
from common.plots import draw_curves
from common.report import format_table, report_split, write_summary
from data.augment import spread
from data.fer2013 import CLASSES, Split
from engine import (
    TrainState,
    best_epoch,
    evaluate_splits,
    final_weights,
    first_epoch_reaching,
    fit,
)
from model import Network
from utils import (
    LOGGER_NAME,
    Stop,
    load_checkpoint,
    load_state,
    save_checkpoint,
    stop_on_signals,
    write_rows,
)

_log = logging.getLogger(LOGGER_NAME)

CHOSEN = "best_val_weights.pt"
ORACLE = "PrivateTest_accuracy"
# File names of the weights saved when the training accuracy first reaches so many percent.
MILESTONES = {85.0: "85_weights.pt", 90.0: "90_weights.pt"}


def choices(protocol: str) -> dict[str, str]:
    """The column of the record that each file of best weights is chosen by."""
    chosen = {CHOSEN: "PublicTest_accuracy"}
    # Chosen on the test images, as the published figures were: an oracle, and so no default.
    return chosen if protocol == "clean" else {**chosen, "best_test_weights.pt": ORACLE}


def saver(
    run: Path,
    model: Network,
    optimizer: torch.optim.Optimizer,
    *,
    description: Mapping[str, Any],
    protocol: str,
    epochs: int,
    drop_path_prob: float,
    args: Mapping[str, Any],
    start_epoch: int = 0,
    average: AveragedModel | None = None,
) -> Callable[[TrainState], None]:
    """The `save` of `engine.fit`: weights after every epoch, and what --resume goes on from.

    `epochs` is what drop-path rises over; of them, `start_epoch` were trained before this run.
    Where there is an `average` of the model, the weights are its.
    """

    def save(state: TrainState) -> None:
        weights = {
            "model": dict(description),
            "state_dict": final_weights(model, average).state_dict(),
            "epoch": start_epoch + state.epoch,
            "epochs": epochs,
            "drop_path_prob": drop_path_prob,
            "start_epoch": start_epoch,
        }
        history = state.history
        if state.step == 0 and history:
            best = choices(protocol).items()
            names = ["weights.pt"]
            names += [name for name, key in best if best_epoch(history, key) == state.epoch]
            names += [
                name
                for percent, name in MILESTONES.items()
                if first_epoch_reaching(history, "train_accuracy", percent) == state.epoch
            ]
            for name in names:
                save_checkpoint(run / name, "weights", {**weights, "metrics": history[-1]})
            write_rows(history, run / "metrics.csv")
        # Last, so that whatever a killed run has not written is written again when it resumes.
        content = {
            "state_dict": model.state_dict(),
            "average": None if average is None else average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "state": state.to_dict(),
            "args": args,
        }
        save_checkpoint(run / "checkpoint.pt", "training", {**weights, **content})

    return save


def train_and_report(
    run: Path,
    model: Network,
    optimizer: torch.optim.Optimizer,
    splits: Mapping[str, Split],
    *,
    state: TrainState,
    precision: torch.autocast,
    time_limit: float | None,
    tta: str,
    save: Callable[[TrainState], None],
    about: Mapping[str, Any],
    **options: Any,
) -> dict[str, Any]:
    """Fit `model` on Training, then report the weights chosen on PublicTest; returns the summary.

    They are chosen in a single view and reported over the views of `tta`. `options` are the other
    arguments of `engine.fit`; `about` is the script's part of the summary.
    Raises Interrupted after `time_limit` minutes or a signal, with everything saved.
    """
    batch_size, limit = options["batch_size"], options["limit_batches"]
    evaluations = {
        name: spread(splits[name], limit and limit * batch_size)
        for name in ("PublicTest", "PrivateTest")
    }
    with stop_on_signals(time_limit) as stop:
        fit(
            model,
            optimizer,
            splits["Training"],
            evaluations,
            state=state,
            precision=precision,
            save=save,
            stop=stop,
            **options,
        )
        summary, table = report_run(
            run,
            model,
            evaluations,
            history=state.history,
            batch_size=batch_size,
            precision=precision,
            stop=stop,
            tta=tta,
            about=about,
        )
    _log.info("\n%s\n\nreports and pictures in %s", table, run)
    return summary


def report_run(
    run: Path,
    model: Network,
    evaluations: Mapping[str, Split],
    *,
    history: list[dict[str, Any]],
    batch_size: int,
    precision: torch.autocast,
    stop: Stop,
    tta: str,
    about: Mapping[str, Any],
) -> tuple[dict[str, Any], str]:
    """Score the weights chosen on PublicTest; write reports, pictures and summary.json.

    Returns the summary, of which `about` is what the script knows, and a table for the log.
    Leaves the chosen weights in `model`.
    """
    # Read by the rank that wrote it, the only one that surely sees it.
    chosen = ranks.from_first(lambda: load_checkpoint(run / CHOSEN, ["weights"]))
    load_state(model, chosen["state_dict"], run / CHOSEN)
    scores = evaluate_splits(
        model, evaluations, batch_size=batch_size, precision=precision, stop=stop, tta=tta
    )
    draw_curves(history, run / "curves.png")
    chosen_epoch, oracle = chosen["metrics"]["epoch"], best_epoch(history, ORACLE)
    summary = write_summary(
        run,
        genotype=chosen["model"]["genotype"],
        parameters=model.size,
        epochs=len(history),
        seconds=sum(record["seconds"] for record in history),
        figures={name: report_split(name, each, CLASSES, run) for name, each in scores.items()},
        tta=tta,
        chosen_epoch=chosen_epoch,
        last_epoch=history[-1],
        oracle={"epoch": oracle, ORACLE: history[oracle - 1][ORACLE]},
        **about,
    )

    def recorded(epoch: int) -> list[float]:
        return [history[epoch - 1][f"{name}_accuracy"] for name in scores]

    chosen_row = f"chosen on PublicTest (epoch {chosen_epoch})"
    rows = [
        [chosen_row, *recorded(chosen_epoch)],
        [f"last epoch ({len(history)})", *recorded(len(history))],
        [f"oracle: best on PrivateTest (epoch {oracle})", *recorded(oracle)],
    ]
    if tta != "none":
        rows.insert(1, [f"{chosen_row}, --tta {tta}", *(s.accuracy for s in scores.values())])
    return summary, format_table(["top-1 accuracy in %", *scores], rows)
