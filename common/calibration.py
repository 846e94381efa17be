"""Calibration: how far the probability of the top class is from the share that is correct."""

from __future__ import annotations

import numpy as np
import pandas as pd

from engine import Scores

BINS = 15


def calibration_bins(scores: Scores) -> pd.DataFrame:
    """Images by the probability of their top class, in BINS equal bins of [0, 1].

    A row for each bin: `images`, and the means `confidence` and `accuracy` in percent, NaN in empty
    bins.
    """
    top = scores.logits.double().softmax(dim=1).amax(dim=1).numpy()
    correct = scores.correct.numpy()
    number = np.minimum((top * BINS).astype(int), BINS - 1)
    each = pd.DataFrame({"confidence": 100.0 * top, "accuracy": 100.0 * correct})
    table = each.groupby(number).mean().reindex(range(BINS))
    table.insert(0, "images", np.bincount(number, minlength=BINS))
    return table


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """Mean distance of confidence and accuracy over images, in points (Naeini, AAAI 2015)."""
    distance = (bins["confidence"] - bins["accuracy"]).abs().fillna(0.0)
    return float((distance * bins["images"]).sum() / bins["images"].sum())
