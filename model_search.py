"""The supernet: every edge computes every primitive, mixed by the softmax of its alphas.

An edge is open (mixed), decided (one primitive, weight one) or pruned (absent); the alphas are in
`alphas_normal` and `alphas_reduce`, the states in `normal_selected_idxs` and
`reduce_selected_idxs`.

With `partial_channels` K (PC-DARTS, Xu et al., ICLR 2020) the primitives of an edge see the first
1/K of the channels of its source; the others pass by, through a 2x2 max pool where the stride is 2.
Both parts are concatenated and the channels shuffled, so that the next edges see others. A decided
edge goes on like this, with its one primitive; a pruned edge adds neither part. PC-DARTS's edge
normalisation is left out: SGAS decides edges by the alphas themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genotypes import PRIMITIVES
from kernels.layouts import concat_nodes, join_shuffled
from kernels.norms import BatchNorm2d, weighted_norms
from operations import ConvBlock, build_primitive, preprocessing

NODES = 4
# The edges of a cell as (node, source): sources 0 and 1 are the cell's inputs, node j is source
# j + 2. An edge's place in this tuple is its number everywhere.
EDGES = tuple((node, source) for node in range(NODES) for source in range(node + 2))
EDGE_NAMES = tuple(f"{source} -> {node + 2}" for node, source in EDGES)  # from state to state
OPEN, PRUNED = -1, 0
CELLS = ("normal", "reduce")
POOLS = tuple(i for i, name in enumerate(PRIMITIVES) if name.endswith("_pool_3x3"))


class Source:
    """A state of a cell, and what its edges share, computed when an edge first needs it.

    `x` is what the primitives see, the first `width` channels of the state; `rest` the others, in
    the size of the edges' output, or None where there are none.
    """

    def __init__(
        self, state: Tensor, pools: Mapping[int, nn.Module], width: int, stride: int
    ) -> None:
        self.x, self.rest = state, None
        if width < state.shape[1]:
            part, rest = state.split([width, state.shape[1] - width], dim=1)
            self.x = part.contiguous(memory_format=torch.channels_last)
            self.rest = rest if stride == 1 else F.max_pool2d(rest, 2)
        self._pools = pools
        self._pooled: dict[int, Tensor] = {}

    @cached_property
    def positive(self) -> Tensor:
        """x after the ReLU with which every convolution but the ghost's begins."""
        return F.relu(self.x)

    def pooled(self, primitive: int) -> Tensor:
        """x after one of POOLS and its batch norm."""
        if primitive not in self._pooled:
            self._pooled[primitive] = self._pools[primitive](self.x)
        return self._pooled[primitive]


class MixedOp(nn.Module):
    """All primitives of one edge; `pools` are shared by all edges of its source."""

    def __init__(self, channels: int, stride: int, pools: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self._ops = nn.ModuleList(
            pools[index] if index in pools else build_primitive(name, channels, stride, False)
            for index, name in enumerate(PRIMITIVES)
        )
        self._blocks = [i for i, op in enumerate(self._ops) if isinstance(op, ConvBlock)]
        # `none` adds zeros; its weight only acts through the softmax.
        self._others = [i for i in range(1, len(PRIMITIVES)) if i not in self._blocks]

    def forward(self, source: Source, scales: Tensor, state: int) -> Tensor:
        """`state` is OPEN, for the sum weighted by `scales`, or the decided primitive.

        `scales` (11, width) hold the weight of each primitive, repeated for each channel.
        """
        if state != OPEN:
            return self._other(state, source)
        weights = scales.unbind()
        # The last module of a block is a batch norm without parameters: the softmaxed alpha becomes
        # its scale, so that weighting costs nothing. This is what makes the supernet fast.
        blocks: list[ConvBlock] = [self._ops[index] for index in self._blocks]  # type: ignore[misc]
        total = weighted_norms(
            [block.norm for block in blocks],
            (block.body(source.positive) for block in blocks),
            [weights[index] for index in self._blocks],
        )
        for index in self._others:
            total = total.addcmul_(self._other(index, source), weights[index][0])
        return total

    def _other(self, primitive: int, source: Source) -> Tensor:
        if primitive in POOLS:
            return source.pooled(primitive)
        return self._ops[primitive](source.x)  # type: ignore[operator]


class Cell(nn.Module):
    """A cell with all 14 edges; the output concatenates the four nodes."""

    def __init__(
        self,
        channels_before_last: int,
        channels_last: int,
        channels: int,
        reduction: bool,
        reduction_before: bool,
        partial_channels: int,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.width = channels // partial_channels  # of the primitives
        self.preprocess0, self.preprocess1 = preprocessing(
            channels_before_last, channels_last, channels, reduction_before, affine=False
        )
        strides = [2 if reduction and source < 2 else 1 for source in range(NODES + 1)]
        self._strides = strides
        # A plain list, so that the pools are registered only in the edges, under the published
        # names.
        self._pools = [_build_pools(self.width, stride) for stride in strides]
        self._ops = nn.ModuleList(
            MixedOp(self.width, strides[source], self._pools[source]) for _, source in EDGES
        )

    def forward(
        self, before_last: Tensor, last: Tensor, weights: Tensor, selected: Sequence[int]
    ) -> Tensor:
        """`weights` (14, 11) mix the open edges; `selected` is the state of each edge.

        `before_last` and `last`: the outputs of the two cells before, after a ReLU.
        """
        inputs = [self.preprocess0.after_relu(before_last), self.preprocess1.after_relu(last)]
        sources = [self._source(number, state) for number, state in enumerate(inputs)]
        # All at once: one operation per edge and primitive would take longer to start than to run.
        scales = weights.unsqueeze(2).expand(-1, -1, self.width).contiguous().unbind()
        outputs: list[Tensor] = []
        for node in range(NODES):
            if node > 0:  # node j is source j + 2
                sources.append(self._source(node + 1, outputs[-1]))
            edges = [
                (edge, sources[source])
                for edge, (end, source) in enumerate(EDGES)
                if end == node and selected[edge] != PRUNED
            ]
            out = _sum([self._ops[e](source, scales[e], selected[e]) for e, source in edges])
            rests = [source.rest for _, source in edges if source.rest is not None]
            if rests:  # shuffling commutes with the sum over edges: once a node
                out = join_shuffled(out, _sum(rests))
            outputs.append(out)
        return concat_nodes(outputs)

    def _source(self, number: int, state: Tensor) -> Source:
        return Source(state, self._pools[number], self.width, self._strides[number])


def _sum(terms: Sequence[Tensor]) -> Tensor:
    first, *others = terms
    return sum(others, first)


def _build_pools(channels: int, stride: int) -> dict[int, nn.Module]:
    """The pools of one source. The batch norms after them make their scales comparable."""
    return {
        index: nn.Sequential(
            build_primitive(PRIMITIVES[index], channels, stride, affine=False),
            BatchNorm2d(channels, affine=False),
        )
        for index in POOLS
    }


class Network(nn.Module):
    """The supernet of `layers` cells, the first of width `C`, over `num_classes`.

    forward: (N, 1, H, W) float in [0, 1] to logits (N, num_classes); H and W multiples of 4.
    1/`partial_channels` of the channels, which must divide C, go through the primitives.
    `alphas_normal`, `alphas_reduce`: 14 vectors of 11 each, 1e-3 * N(0, 1) at first.
    `normal_selected_idxs`, `reduce_selected_idxs`: 14 integers each, -1 open, 0 pruned, k decided
    for primitive k; set by `set_states`. `description` holds the arguments.
    """

    def __init__(self, C: int, num_classes: int, layers: int, partial_channels: int = 1) -> None:
        super().__init__()
        self.description = {
            "C": C,
            "num_classes": num_classes,
            "layers": layers,
            "partial_channels": partial_channels,
        }
        self.stem = nn.Sequential(nn.Conv2d(1, 3 * C, 3, padding=1, bias=False), BatchNorm2d(3 * C))
        self.relu = nn.ReLU(inplace=True)
        self.cells = nn.ModuleList()
        channels_before_last = channels_last = 3 * C
        channels, reduction_before = C, False
        for index in range(layers):
            reduction = index in (layers // 3, 2 * layers // 3)
            channels = 2 * channels if reduction else channels
            inputs = (channels_before_last, channels_last)
            self.cells.append(
                Cell(*inputs, channels, reduction, reduction_before, partial_channels)
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
        out, last = self.stem(x), None
        for cell in self.cells:
            weights = reduce if cell.reduction else normal
            selected = self.reduce_selected_idxs if cell.reduction else self.normal_selected_idxs
            # The two cells that see an output both begin with a ReLU: one does for both.
            positive = self.relu(out)
            before_last, last = positive if last is None else last, positive
            out = cell(before_last, last, weights, selected)
        return self.classifier(out.mean(dim=(2, 3)))

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
