"""The step on the alphas, of first or second order (DARTS, Liu et al., ICLR 2019)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from genotypes import PRIMITIVES
from model_search import OPEN, Network
from operations import PRIMITIVE_TABLE
from recipe.compiling import Batch, StepGraphs
from runtime.processes import average_tensors, shard

FINITE_DIFFERENCE = 0.01  # R of DARTS, divided by the norm of the gradient


class Architect:
    """The optimizer of the alphas: Adam along the gradient of the validation loss and the penalty.

    First order, or second with --unrolled. Flags read: arch_learning_rate, arch_weight_decay,
    unrolled, protocol; and of the weights' step, which the second order unrolls, momentum and
    weight_decay. `graphs` are the CUDA graphs of `first_order_gradient`.
    """

    def __init__(
        self,
        model: Network,
        args: Namespace,
        precision: torch.autocast,
        graphs: StepGraphs | None = None,
    ) -> None:
        self.model = model
        self.graphs = graphs or StepGraphs()
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
            gradients = self.graphs.run(self.first_order_gradient, valid)
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
        """Gradient in the open alphas of the validation loss after one more step, plus the penalty.

        With w' = w - lr * (momentum * buffer + grad L_train + weight_decay * w), lr and buffer
        those of `optimizer`, and v = grad_w' L_valid(w', alpha) it is
            grad_alpha L_valid(w', alpha)
            - lr * (grad_alpha L_train(w + R v) - grad_alpha L_train(w - R v)) / (2 R),
        R = 0.01 / ||v|| (DARTS, equations 7 and 8).
        """
        alphas, lr = self._open_alphas(), optimizer.param_groups[0]["lr"]
        unrolled = self._unrolled_weights(train, optimizer)
        loss = self._loss(unrolled, valid, self.precision) + self.penalty()
        gradients = _gradient(loss, [*alphas, *unrolled.values()])
        dalpha, vector = gradients[: len(alphas)], gradients[len(alphas) :]
        products = self._hessian_vector_product(vector, train)
        return [direct - lr * product for direct, product in zip(dalpha, products, strict=True)]

    def _unrolled_weights(
        self, train: Batch, optimizer: torch.optim.Optimizer
    ) -> dict[str, Tensor]:
        """w', the weights by name after one more step."""
        weights = self.model.named_weights()
        gradients = _gradient(self._loss(weights, train, self.precision), [*weights.values()])
        unrolled, lr = {}, optimizer.param_groups[0]["lr"]
        with torch.no_grad():
            for (name, weight), step in zip(weights.items(), gradients, strict=True):
                step.add_(weight, alpha=self.weight_decay)
                buffer = optimizer.state.get(weight, {}).get("momentum_buffer")
                if buffer is not None:
                    step.add_(buffer, alpha=self.momentum)
                unrolled[name] = (weight - lr * step).requires_grad_()
        return unrolled

    def _hessian_vector_product(self, vector: Sequence[Tensor], train: Batch) -> list[Tensor]:
        """The mixed second derivative of L_train in alphas and weights times v, by differences.

        Both passes run in full precision, as bfloat16 would round R v away.
        """
        weights, alphas = self.model.named_weights(), self._open_alphas()
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in vector]))
        radius = FINITE_DIFFERENCE / norm
        full = torch.autocast(train[0].device.type, enabled=False)

        def train_gradient(sign: int) -> list[Tensor]:
            shifted = {
                name: weight.detach() + sign * radius * v
                for (name, weight), v in zip(weights.items(), vector, strict=True)
            }
            return _gradient(self._loss(shifted, train, full), alphas)

        pairs = zip(train_gradient(1), train_gradient(-1), strict=True)
        return [(plus - minus) / (2 * radius) for plus, minus in pairs]

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
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]


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
