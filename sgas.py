"""The greedy decisions of edges (SGAS, Li et al., CVPR 2020), by criterion 1, or 2 with a history.

Down to `derive_cell` the functions are pure: of the alphas (14, 11) of one type of cell, and the
states of its edges; the others apply them to both cells of a supernet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genotypes import PRIMITIVES, Edge, Genotype
from model_search import CELLS, EDGES, NODES, OPEN, PRUNED, Network

ROUNDING = 1e-12  # by which equal criteria may differ in float64; alphas differ by far more


@dataclass(frozen=True)
class EdgeScores:
    """The criteria of the 14 edges, float64 (14,), and their score."""

    importance: Tensor  # softmax mass on primitives other than none
    certainty: Tensor  # 1 - normalised entropy of them
    stability: Tensor  # mean histogram intersection with the history, zeros without one
    score: Tensor  # product of the min-max normalised criteria
    probs: Tensor  # float64 (14, 10): softmax without none, renormalised


def score_edges(
    alphas: Tensor, history: Sequence[Tensor] = (), *, use_history: bool = False
) -> EdgeScores:
    """Score every edge by SGAS criterion 1, or 2 with `use_history`.

    `alphas` (14, 11); `history`: the `probs` of earlier epochs, latest last.
    """
    mass = alphas.detach().cpu().double().softmax(dim=1)[:, 1:]
    importance = mass.sum(dim=1)
    probs = mass / importance[:, None]
    entropy = -torch.special.xlogy(probs, probs).sum(dim=1)
    certainty = 1.0 - entropy / math.log(probs.shape[1])
    stability = torch.zeros_like(importance)
    if history:
        overlaps = [torch.minimum(past, probs).sum(dim=1) for past in history]
        stability = torch.stack(overlaps).mean(dim=0)
    score = min_max_normalise(importance) * min_max_normalise(certainty)
    if use_history:
        score = score * min_max_normalise(stability)
    return EdgeScores(importance, certainty, stability, score, probs)


def min_max_normalise(values: Tensor) -> Tensor:
    """Min-max normalisation to [0, 1]; a vector constant up to rounding becomes zeros."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high - low > ROUNDING else torch.zeros_like(values)


def likeliest(scores: EdgeScores, edge: int) -> int:
    """The most likely primitive of an edge other than none."""
    return 1 + int(scores.probs[edge].argmax())


def is_decision_epoch(epoch: int, warmup: int, frequency: int) -> bool:
    """Whether an edge of each cell is decided after epoch `epoch`, counted from 0."""
    return epoch >= warmup and (epoch - warmup) % frequency == 0


def count_epochs(warmup: int, frequency: int) -> int:
    """Epochs of a whole search: warm-up, eight decisions, and a few epochs of the final cells."""
    return warmup + frequency * (2 * NODES - 1) + 6


def choose_edge(scores: EdgeScores, states: Sequence[int]) -> tuple[int, int] | None:
    """(edge, primitive) of the open edge with the highest score, or None when none is open.

    The primitive is the edge's most likely one other than none. Ties go to the first edge.
    """
    edges = [edge for edge, state in enumerate(states) if state == OPEN]
    if not edges:
        return None
    edge = max(edges, key=lambda e: (scores.score[e].item(), -e))
    return edge, likeliest(scores, edge)


def decide_edge(states: Sequence[int], edge: int, primitive: int) -> list[int]:
    """The states with `edge` decided; a node that then has two decided edges loses its others."""
    states = list(states)
    states[edge] = primitive
    node = EDGES[edge][0]
    siblings = [e for e, (other, _) in enumerate(EDGES) if other == node]
    if sum(states[e] > 0 for e in siblings) == 2:
        for e in siblings:
            if states[e] == OPEN:
                states[e] = PRUNED
    return states


def derive_cell(scores: EdgeScores, states: Sequence[int]) -> tuple[Edge, ...]:
    """The cell that would result now: decided edges, then each node's most important open ones.

    Returns (primitive, source) pairs, two per node, sources ascending.
    """
    cell: list[Edge] = []
    for node in range(NODES):
        edges = [e for e, (other, _) in enumerate(EDGES) if other == node]
        kept = [e for e in edges if states[e] > 0]  # decided
        rest = sorted(
            (e for e in edges if states[e] == OPEN), key=lambda e: (-scores.importance[e].item(), e)
        )
        for edge in sorted([*kept, *rest][:2]):
            primitive = states[edge] if states[edge] > 0 else likeliest(scores, edge)
            cell.append((PRIMITIVES[primitive], EDGES[edge][1]))
    return tuple(cell)


# --- the same on both cells of a supernet


def score_cells(
    model: Network, past: Mapping[str, Sequence[Tensor]], *, use_history: bool
) -> dict[str, EdgeScores]:
    """Score the edges of each cell; `past` holds the `probs` of earlier epochs by cell."""
    return {
        cell: score_edges(alphas, past[cell], use_history=use_history)
        for cell, alphas in model.alphas.items()
    }


def decide(model: Network, scores: Mapping[str, EdgeScores]) -> list[dict[str, Any]]:
    """Decide the best open edge of each cell, where there is one.

    Returns for each decision its cell, edge and primitive's name, and the edges that it pruned.
    """
    decisions, states = [], model.states
    for cell in CELLS:
        choice = choose_edge(scores[cell], states[cell])
        if choice is not None:
            before, states[cell] = states[cell], decide_edge(states[cell], *choice)
            pruned = [e for e, s in enumerate(states[cell]) if s == PRUNED and before[e] == OPEN]
            edge, primitive = choice
            decisions.append(
                {"cell": cell, "edge": edge, "primitive": PRIMITIVES[primitive], "pruned": pruned}
            )
    model.set_states(**states)
    return decisions


def derive_genotype(model: Network, scores: Mapping[str, EdgeScores]) -> Genotype:
    """The genotype that would result now: decided edges, and the most important open ones."""
    normal, reduce = (derive_cell(scores[cell], model.states[cell]) for cell in CELLS)
    concat = tuple(range(2, 2 + NODES))
    return Genotype(normal, concat, reduce, concat)
