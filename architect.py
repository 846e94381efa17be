"""The architecture: the step on the alphas (DARTS) and the greedy decisions of edges (SGAS).

`Architect` takes the step, of first or second order (Liu et al., ICLR 2019). The decisions are pure
functions of alphas and states (Li et al., CVPR 2020, criterion 1, or 2 with a history).
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from genotypes import PRIMITIVES, Edge, Genotype
from model_search import CELLS, EDGES, NODES, OPEN, PRUNED, Network
from operations import PRIMITIVE_TABLE
from runtime.processes import average_tensors, shard

Batch = tuple[Tensor, Tensor]

FINITE_DIFFERENCE = 0.01  # R of DARTS, divided by the norm of the gradient
ROUNDING = 1e-12  # by which equal criteria may differ in float64; alphas differ by far more


# --- the step on the alphas


class Architect:
    """The optimizer of the alphas: Adam along the gradient of the validation loss and the penalty.

    First order, or second with --unrolled. Flags read: arch_learning_rate, arch_weight_decay,
    unrolled, protocol; and of the weights' step, which the second order unrolls, momentum and
    weight_decay.
    """

    def __init__(self, model: Network, args: Namespace, precision: torch.autocast) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(
            model.arch_parameters(),
            lr=args.arch_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=args.arch_weight_decay,
        )
        self.precision = precision
        self.unrolled = args.unrolled
        self.momentum, self.weight_decay = args.momentum, args.weight_decay
        self.first_edge_only = args.protocol == "paper"

    def step(self, train: Batch, valid: Batch, optimizer: torch.optim.Optimizer) -> None:
        """One step on the open alphas; the others stay frozen.

        `train` and `valid` are images and labels of the whole batches, of which each process takes
        its shard; `optimizer` is that of the weights. Weights and batch-norm statistics stay as
        they are.
        """
        alphas = self._open_alphas()
        if not alphas:
            return
        weight = shard(len(valid[1])).weight
        train, valid = take_shard(train), take_shard(valid)
        if self.unrolled:
            gradients = self.second_order_gradient(train, valid, optimizer)
        else:
            gradients = self.first_order_gradient(valid)
        average_tensors(gradients, weight)
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def first_order_gradient(self, valid: Batch) -> list[Tensor]:
        """Gradient of the validation loss plus the penalty in the open alphas, weights fixed."""
        with frozen(self.model.weight_parameters()):
            loss = self._loss({}, valid, self.precision) + self.penalty()
            return _gradient(loss, self._open_alphas())

    def second_order_gradient(
        self, train: Batch, valid: Batch, optimizer: torch.optim.Optimizer
    ) -> list[Tensor]:
        """Gradient in the open alphas of the validation loss after one more step on the weights.

        With w' = w - lr * (momentum * buffer + grad L_train + weight_decay * w), lr and buffer
        those of `optimizer`, and v = grad_w' L_valid(w', alpha) it is
            grad_alpha L_valid(w', alpha)
            - lr * (grad_alpha L_train(w + R v) - grad_alpha L_train(w - R v)) / (2 R),
        R = 0.01 / ||v|| (DARTS, equations 7 and 8). The passes of the difference run in full
        precision, as bfloat16 would round R v away.
        """
        alphas, weights = self._open_alphas(), self.model.named_weights()
        lr = optimizer.param_groups[0]["lr"]
        values = list(weights.values())
        buffers = [optimizer.state.get(w, {}).get("momentum_buffer") for w in values]
        steps = _gradient(self._loss(weights, train, self.precision), values)
        with torch.no_grad():
            for weight, step, buffer in zip(values, steps, buffers, strict=True):
                step.add_(weight, alpha=self.weight_decay)
                if buffer is not None:
                    step.add_(buffer, alpha=self.momentum)
        ahead = {
            name: (weight.detach() - lr * step).requires_grad_()
            for (name, weight), step in zip(weights.items(), steps, strict=True)
        }
        loss = self._loss(ahead, valid, self.precision) + self.penalty()
        outer = _gradient(loss, [*alphas, *ahead.values()])
        direct, v = outer[: len(alphas)], outer[len(alphas) :]
        radius = FINITE_DIFFERENCE / torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(g) for g in v])
        )
        full = torch.autocast(train[0].device.type, enabled=False)

        def train_gradient(sign: int) -> list[Tensor]:
            moved = {
                name: weight.detach() + sign * radius * g
                for (name, weight), g in zip(weights.items(), v, strict=True)
            }
            return _gradient(self._loss(moved, train, full), alphas)

        return [
            first - lr * (plus - minus) / (2 * radius)
            for first, plus, minus in zip(
                direct, train_gradient(1), train_gradient(-1), strict=True
            )
        ]

    def penalty(self) -> Tensor:
        """`complexity` of the open edges of the normal cell; with the paper protocol of edge 0."""
        states = self.model.normal_selected_idxs
        edges = [edge for edge, state in enumerate(states) if state == OPEN]
        if self.first_edge_only:
            edges = [edge for edge in edges if edge == 0]
        return complexity(self.model.alphas_normal, edges)

    def _loss(self, weights: dict[str, Any], batch: Batch, precision: torch.autocast) -> Tensor:
        """Cross entropy of `batch`, at `weights` in place of the model's, in float32 at least."""
        images, labels = batch
        with precision, _statistics_unchanged(self.model):
            # functional_call would walk over the whole supernet even with nothing to replace.
            model = self.model
            logits = functional_call(model, weights, (images,)) if weights else model(images)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)

    def _open_alphas(self) -> list[nn.Parameter]:
        return [alpha for alpha in self.model.arch_parameters() if alpha.requires_grad]


def take_shard(batch: Batch) -> Batch:
    """This process's shard of a batch of images and labels."""
    rows = shard(len(batch[1])).rows
    return batch[0][rows], batch[1][rows]


def complexity(alphas: Sequence[Tensor] | nn.ParameterList, edges: Sequence[int]) -> Tensor:
    """0.5 * sum over `edges` and primitives o of alpha_o^2 * cost_o / (sum of costs): a scalar."""
    costs = _cost_shares(alphas[0].dtype, alphas[0].device)
    terms = [(alphas[edge] ** 2 * costs).sum() for edge in edges]
    return 0.5 * sum(terms, costs.new_zeros(()))


@cache
def _cost_shares(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The costs of the primitives over their sum, (11,); copied to a device once."""
    numbers = [PRIMITIVE_TABLE[name].cost for name in PRIMITIVES]
    costs = torch.tensor(numbers, dtype=dtype, device=device)
    return costs / costs.sum()


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Temporarily freeze the parameters, so that nothing is kept or computed for their gradient."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _gradient(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradient of `loss` in `inputs`; zeros for the weights of primitives that did not compute."""
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


@contextmanager
def _statistics_unchanged(model: Network) -> Iterator[None]:
    """Batch norms scale by the batch as in training, and keep their running statistics."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


# --- the greedy decisions, on alphas (14, 11) of one cell type and the states of its edges


@dataclass(frozen=True)
class EdgeScores:
    """The criteria are float64 (14,), not yet normalised; `probs` is (14, 10)."""

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
    return edge, 1 + int(scores.probs[edge].argmax())


def decide_edge(states: Sequence[int], edge: int, primitive: int) -> list[int]:
    """The states with `edge` decided; a node that then has two decided edges loses its others."""
    states = list(states)
    states[edge] = primitive
    node = EDGES[edge][0]
    siblings = [e for e, (target, _) in enumerate(EDGES) if target == node]
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
        edges = [e for e, (target, _) in enumerate(EDGES) if target == node]
        kept = [e for e in edges if states[e] > 0]
        rest = sorted(
            (e for e in edges if states[e] == OPEN), key=lambda e: (-scores.importance[e].item(), e)
        )
        for edge in sorted([*kept, *rest][:2]):
            primitive = states[edge] if states[edge] > 0 else 1 + int(scores.probs[edge].argmax())
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
