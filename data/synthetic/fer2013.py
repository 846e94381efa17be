"""The synthetic FER2013: drawn faces, ten annotators' votes, known wrong labels in Training.

No data set may be shipped, so `--data synthetic` draws one. A face has an identity, conditions of
its picture (pose, light, blur, noise) and an expression: its true class at some intensity, blended
with a second class. The blend determines the face, the annotators' votes and, in the training
split, which labels are wrong. The seed determines every byte, on every machine (see
`data.synthetic_faces`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data.synthetic.faces import ACTIONS, CONDITIONS, EXPRESSIONS, TRAITS, Face, draw_ranges, render
from data.types import CLASSES, SPLITS, Split

VOTE_COLUMNS = (
    "neutral", "happiness", "surprise", "sadness", "anger",
    "disgust", "fear", "contempt", "unknown", "NF",
)  # fmt: skip
# The vote column of each FER2013 class, in the class order.
CLASS_COLUMNS = (4, 5, 6, 1, 3, 2, 0)
ANNOTATORS = 10
DEFAULT_COUNTS = {"Training": 2800, "PublicTest": 350, "PrivateTest": 350}
# FER2013's shares in percent, with more of disgust so that a small split holds some.
SHARES = (14, 5, 14, 24, 16, 11, 16)
WRONG_SHARE = 0.12

# How often a face of the row's class is taken for the column's: integer weights.
CONFUSIONS = np.array(
    [
        [0, 8, 3, 0, 4, 1, 4],  # angry
        [9, 0, 2, 1, 4, 1, 3],  # disgust
        [2, 1, 0, 1, 4, 10, 2],  # fear
        [1, 1, 1, 0, 1, 3, 13],  # happy
        [3, 2, 4, 0, 0, 1, 10],  # sad
        [1, 1, 10, 3, 0, 0, 5],  # surprise
        [4, 1, 1, 3, 9, 2, 0],  # neutral
    ],
    dtype=np.int64,
)
# Lowest and highest intensity of an expression; 0 is neutral.
INTENSITY = (0.25, 1.10)
# At most this part of an expression comes from a second class.
BLEND = 0.42
# Random factor 1 +- MANNER on each action of the expression, and a random movement of up to TWITCH
# of the action's range.
MANNER = 0.40
TWITCH = 0.09


@dataclass(frozen=True)
class Drawing:
    """The parameters of one split, before it is rendered; numpy, N images.

    `face` maps each trait, condition and action to float64 (N,); `labels` (given) and
    `true_labels` int64 (N,) in 0..6; `votes` int64 (N, 10), columns VOTE_COLUMNS, each row summing
    to ANNOTATORS; `intensity` float64 (N,), 0 for a neutral face.
    """

    face: Face
    labels: np.ndarray
    true_labels: np.ndarray
    votes: np.ndarray
    intensity: np.ndarray


def draw_fer2013(seed: int = 0, counts: dict[str, int] | None = None) -> dict[str, Split]:
    """Draw the synthetic FER2013.

    `counts` gives the images of each split (default DEFAULT_COUNTS; a split left out is empty).
    Returns {split name: Split}: images uint8 (N, 1, 48, 48), labels int64 (N,) as given, of
    which WRONG_SHARE are wrong in Training and none elsewhere.
    """
    splits = {}
    for name, drawing in draw_records(seed, counts).items():
        noise = random_stream(seed, SPLITS.index(name), 1)
        splits[name] = Split(
            images=torch.from_numpy(render(drawing.face, noise)[:, None]),
            labels=torch.from_numpy(drawing.labels),
        )
    return splits


def draw_votes(seed: int = 0, counts: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """The annotators' votes on the images of `draw_fer2013(seed, counts)`, in the same order.

    Returns {split name: int64 (N, 10)}, columns VOTE_COLUMNS, each row summing to ANNOTATORS.
    """
    return {name: drawing.votes for name, drawing in draw_records(seed, counts).items()}


def draw_records(seed: int = 0, counts: dict[str, int] | None = None) -> dict[str, Drawing]:
    """The parameters of `draw_fer2013(seed, counts)`, not rendered: {split name: Drawing}."""
    counts = DEFAULT_COUNTS if counts is None else counts
    return {
        name: _draw_split(random_stream(seed, index, 0), counts.get(name, 0), name == "Training")
        for index, name in enumerate(SPLITS)
    }


def random_stream(seed: int, *purpose: int) -> np.random.RandomState:
    """A separate random stream for each seed and purpose; numpy keeps RandomState unchanged."""
    return np.random.RandomState([seed % 2**32, *purpose])


def express(
    stream: np.random.RandomState,
    names: list[str],
    classes: np.ndarray,
    intensity: np.ndarray,
    second: np.ndarray,
    blend: np.ndarray,
) -> Face:
    """The face's actions for `classes` (int64 (N,) into `names`) at `intensity` (float64 (N,)).

    `blend` (0 to 1) of the expression comes from the class `second`; MANNER and TWITCH vary each
    action. Returns {action: float64 (N,)}.
    """
    table = np.array([EXPRESSIONS[name] for name in names], dtype=np.float64)
    reach = np.array(
        [max(abs(row[i]) for row in EXPRESSIONS.values()) for i in range(len(ACTIONS))]
    )
    face = {}
    for index, action in enumerate(ACTIONS):
        own = table[classes, index] * intensity * (1.0 - blend)
        other = table[second, index] * blend
        strength = 1.0 + MANNER * (2.0 * stream.random_sample(len(classes)) - 1.0)
        twitch = TWITCH * reach[index] * (2.0 * stream.random_sample(len(classes)) - 1.0)
        face[action] = (own + other) * strength + twitch
    side = np.where(stream.random_sample(len(classes)) < 0.5, -1.0, 1.0)
    face["asymmetry"] = face["asymmetry"] * side
    return face


def class_labels(stream: np.random.RandomState, shares: tuple[int, ...], count: int) -> np.ndarray:
    """`count` classes in random order, int64, in `shares` rounded by largest remainder."""
    exact = np.array(shares) * count
    whole = exact // sum(shares)
    left = np.argsort(whole * sum(shares) - exact, kind="stable")[: count - int(whole.sum())]
    whole[left] += 1
    ordered = np.repeat(np.arange(len(shares), dtype=np.int64), whole)
    return ordered[np.argsort(stream.random_sample(count), kind="stable")]


def _draw_split(stream: np.random.RandomState, count: int, mislabel: bool) -> Drawing:
    true_labels = class_labels(stream, SHARES, count)
    low, high = INTENSITY
    intensity = low + (high - low) * stream.random_sample(count)
    neutral = true_labels == CLASSES.index("neutral")
    intensity[neutral] = 0.0
    second = _choose(stream, CONFUSIONS[true_labels])
    # Squaring a uniform draw keeps most faces pure and leaves a tail of ambiguous ones.
    blend = stream.random_sample(count)
    blend = BLEND * blend * blend
    face = draw_ranges(stream, TRAITS, count)
    face.update(draw_ranges(stream, CONDITIONS, count))
    face.update(express(stream, list(CLASSES), true_labels, intensity, second, blend))
    votes = _vote(stream, true_labels, intensity, second, blend)
    labels = true_labels.copy()
    if mislabel:
        _mislabel(stream, labels, votes)
    return Drawing(face, labels, true_labels, votes, intensity)


def _vote(
    stream: np.random.RandomState,
    true_labels: np.ndarray,
    intensity: np.ndarray,
    second: np.ndarray,
    blend: np.ndarray,
) -> np.ndarray:
    """Ten annotators each choose a column; weak expressions look neutral, blends like both."""
    count = len(true_labels)
    columns = np.array(CLASS_COLUMNS)
    rows = np.arange(count)
    weights = np.full((count, len(VOTE_COLUMNS)), 0.01)
    weights[:, VOTE_COLUMNS.index("NF")] = 0.002
    weights[:, VOTE_COLUMNS.index("contempt")] = 0.02
    neutral = true_labels == CLASSES.index("neutral")
    seen = np.where(neutral, 0.85, np.minimum(0.35 + 0.75 * intensity, 1.0))
    weights[rows, columns[true_labels]] += seen * (1.0 - blend)
    weights[rows, columns[second]] += 0.08 + 1.2 * blend
    weights[:, VOTE_COLUMNS.index("neutral")] += 0.6 * (1.0 - seen)
    votes = np.zeros((count, len(VOTE_COLUMNS)), dtype=np.int64)
    for _ in range(ANNOTATORS):
        votes[rows, _choose(stream, weights)] += 1
    return votes


def _mislabel(stream: np.random.RandomState, labels: np.ndarray, votes: np.ndarray) -> None:
    """Make WRONG_SHARE of `labels` wrong in place, preferring images whose votes disagree."""
    count = len(labels)
    rows = np.arange(count)
    doubt = votes[:, CLASS_COLUMNS] * 4 + CONFUSIONS[labels]
    doubt[rows, labels] = 0
    wrong = _choose(stream, doubt)
    agreed = votes[rows, np.array(CLASS_COLUMNS)[labels]]
    order = stream.random_sample(count) / (4 + ANNOTATORS - agreed)
    picked = np.argsort(order, kind="stable")[: int(WRONG_SHARE * count + 0.5)]
    labels[picked] = wrong[picked]


def _choose(stream: np.random.RandomState, weights: np.ndarray) -> np.ndarray:
    """For each row of `weights` (N, K) a column, drawn in proportion; int64 (N,)."""
    # Column by column: so the order of the additions, hence every bit, is the same everywhere.
    edges = [weights[:, 0] + 0.0]
    for column in range(1, weights.shape[1]):
        edges.append(edges[-1] + weights[:, column])
    point = stream.random_sample(len(weights)) * edges[-1]
    return np.stack([point >= edge for edge in edges[:-1]]).sum(axis=0)
