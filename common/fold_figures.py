"""The figures of a cross-validation: means over folds, votes of sequences, what folds share."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.report import count_images, format_table, headline, report_split
from data.types import Faces
from engine import Scores


def vote(logits: Tensor, labels: Tensor, sequences: Sequence[str]) -> float:
    """Accuracy in percent when the images of a sequence vote; the mean probability breaks ties."""
    votes = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1])
    # Below half a vote in sum, so that it only ever breaks ties.
    ballots = votes + 0.5 * logits.double().softmax(dim=1) / len(sequences)
    sums = pd.DataFrame(ballots.numpy()).groupby(np.array(sequences)).sum()
    truth = pd.Series(labels.numpy()).groupby(np.array(sequences)).first()
    return 100.0 * float((sums.idxmax(axis=1) == truth).mean())


def summarise_folds(
    name: str, results: Sequence[dict[str, Any]], faces: Faces, classes: Sequence[str], run: Path
) -> dict[str, Any]:
    """The figures of a cross-validation; writes the report and the confusion over all folds.

    Means and deviations (of the population of folds) in percent, over folds; "interval95" is the
    half width of a binomial 95 % interval, as if the tested images were independent.
    """
    index = torch.cat([result["test_index"] for result in results])
    logits = torch.cat([result["logits"] for result in results])
    labels = faces.labels[index]
    by_sequence = [
        vote(
            result["logits"],
            faces.labels[result["test_index"]],
            [faces.sequences[row] for row in result["test_index"].tolist()],
        )
        for result in results
    ]
    last = [result["accuracy"] for result in results]
    oracle = [result["oracle"] for result in results]
    times = torch.bincount(index, minlength=len(faces.labels))
    pooled = report_split(name, Scores(logits, labels, total=len(faces.labels)), classes, run)
    return {
        **headline(statistics.mean(last), pooled["images"], pooled.get("of")),
        "deviation": statistics.pstdev(last),
        "sequence_accuracy": statistics.mean(by_sequence),
        "sequence_deviation": statistics.pstdev(by_sequence),
        "oracle_accuracy": statistics.mean(oracle),
        "folds": last,
        "pooled": pooled,
        "never_tested": int((times == 0).sum()),
        "tested_twice": int((times > 1).sum()),
        "subjects_shared": sum(result["subjects_shared"] for result in results),
        "sequences_shared": sum(result["sequences_shared"] for result in results),
    }


def tabulate_folds(name: str, figures: Mapping[str, Any]) -> str:
    """The table that ends a cross-validation, of what `summarise_folds` returned."""
    count = len(figures["folds"])
    rows = [
        ["last epoch, per image", figures["accuracy"], figures["deviation"]],
        ["last epoch, per sequence, by vote of its images", figures["sequence_accuracy"],
         figures["sequence_deviation"]],
        ["oracle: best epoch of each fold, single view", figures["oracle_accuracy"], ""],
    ]  # fmt: skip
    columns = [f"{name}, top-1 accuracy in %", f"mean of {count} folds", "deviation"]
    return (
        f"{format_table(columns, rows)}\n\n{count_images(figures)} images were tested; "
        f"{figures['subjects_shared']} share a subject with training, "
        f"{figures['sequences_shared']} a sequence; {figures['never_tested']} images were never "
        f"tested, {figures['tested_twice']} more than once"
    )
