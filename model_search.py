"""The supernet: every edge computes every primitive, mixed by the softmax of its alphas.

An edge is open (mixed), decided (one primitive, weight one) or pruned (absent); the alphas are in
`alphas_normal` and `alphas_reduce`, the states in `normal_selected_idxs` and
`reduce_selected_idxs`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genotypes import PRIMITIVES
from operations import build_primitive, preprocessing

NODES = 4
# The edges of a cell as (node, source): sources 0 and 1 are the cell's inputs, node j is source
# j + 2. An edge's place in this tuple is its number everywhere.
EDGES = tuple((node, source) for node in range(NODES) for source in range(node + 2))
OPEN, PRUNED = -1, 0
CELLS = ("normal", "reduce")


class MixedOp(nn.Module):
    """All primitives of one edge. The batch norms after pools make their scales comparable."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList()
        for name in PRIMITIVES:
            op = build_primitive(name, channels, stride, affine=False)
            if "pool" in name:
                op = nn.Sequential(op, nn.BatchNorm2d(channels, affine=False))
            self._ops.append(op)

    def forward(self, x: Tensor, weights: Tensor, state: int) -> Tensor:
        """`state` is OPEN, for the sum over `weights` (11,), or the primitive decided on."""
        if state != OPEN:
            return self._ops[state](x)
        # `none` adds zeros; its weight acts through the softmax alone.
        return sum(weight * op(x) for weight, op in zip(weights[1:], self._ops[1:], strict=True))


class Cell(nn.Module):
    """A cell with all 14 edges; the output concatenates the four nodes."""

    def __init__(
        self,
        channels_before_last: int,
        channels_last: int,
        channels: int,
        reduction: bool,
        reduction_before: bool,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0, self.preprocess1 = preprocessing(
            channels_before_last, channels_last, channels, reduction_before, affine=False
        )
        self._ops = nn.ModuleList(
            MixedOp(channels, 2 if reduction and source < 2 else 1) for _, source in EDGES
        )

    def forward(
        self, before_last: Tensor, last: Tensor, weights: Tensor, selected: Sequence[int]
    ) -> Tensor:
        """`weights` (14, 11) mix the open edges; `selected` is the state of each edge."""
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        for node in range(NODES):
            states.append(
                sum(
                    self._ops[edge](states[source], weights[edge], selected[edge])
                    for edge, (target, source) in enumerate(EDGES)
                    if target == node and selected[edge] != PRUNED
                )
            )
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    """The supernet of `layers` cells, the first of width `C`, over `num_classes`.

    forward: (N, 1, H, W) float in [0, 1] to logits (N, num_classes); H and W multiples of 4.
    `alphas_normal`, `alphas_reduce`: 14 vectors of 11 each, 1e-3 * N(0, 1) at first.
    `normal_selected_idxs`, `reduce_selected_idxs`: 14 integers each, -1 open, 0 pruned, k decided
    for primitive k; set by `set_states`.
    """

    def __init__(self, C: int, num_classes: int, layers: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C)
        )
        self.cells = nn.ModuleList()
        channels_before_last = channels_last = 3 * C
        channels, reduction_before = C, False
        for index in range(layers):
            reduction = index in (layers // 3, 2 * layers // 3)
            channels = 2 * channels if reduction else channels
            self.cells.append(
                Cell(channels_before_last, channels_last, channels, reduction, reduction_before)
            )
            reduction_before = reduction
            channels_before_last, channels_last = channels_last, NODES * channels
        self.classifier = nn.Linear(channels_last, num_classes)
        self.alphas_normal = _draw_alphas()
        self.alphas_reduce = _draw_alphas()
        self.normal_selected_idxs = [OPEN] * len(EDGES)
        self.reduce_selected_idxs = [OPEN] * len(EDGES)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        normal = torch.stack(list(self.alphas_normal)).softmax(dim=1)
        reduce = torch.stack(list(self.alphas_reduce)).softmax(dim=1)
        before_last = last = self.stem(x)
        for cell in self.cells:
            weights = reduce if cell.reduction else normal
            selected = self.reduce_selected_idxs if cell.reduction else self.normal_selected_idxs
            before_last, last = last, cell(before_last, last, weights, selected)
        return self.classifier(last.mean(dim=(2, 3)))

    def set_states(self, normal: Sequence[int], reduce: Sequence[int]) -> None:
        """Set the state of every edge, and freeze the alphas of edges that are not open."""
        self.normal_selected_idxs, self.reduce_selected_idxs = list(normal), list(reduce)
        pairs = [(self.alphas_normal, normal), (self.alphas_reduce, reduce)]
        for alphas, states in pairs:
            for alpha, state in zip(alphas, states, strict=True):
                alpha.requires_grad_(state == OPEN)
                alpha.grad = None

    @property
    def states(self) -> dict[str, list[int]]:
        """The state of every edge of each cell of `CELLS`."""
        return {"normal": self.normal_selected_idxs, "reduce": self.reduce_selected_idxs}

    @property
    def alphas(self) -> dict[str, Tensor]:
        """The alphas of each cell of `CELLS`, (14, 11), as they are now and without gradient."""
        pairs = zip(CELLS, (self.alphas_normal, self.alphas_reduce), strict=True)
        return {cell: torch.stack(list(alphas)).detach() for cell, alphas in pairs}

    def arch_parameters(self) -> list[nn.Parameter]:
        """All 28 vectors of alphas, those of the normal cell first."""
        return [*self.alphas_normal, *self.alphas_reduce]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Everything but the alphas."""
        return list(self.named_weights().values())

    def named_weights(self) -> dict[str, nn.Parameter]:
        """The weights by name, in the order of `weight_parameters`."""
        return {n: p for n, p in self.named_parameters() if not n.startswith("alphas_")}


def _draw_alphas() -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(1e-3 * torch.randn(len(PRIMITIVES))) for _ in EDGES)
