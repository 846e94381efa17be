"""Plain networks, augmentation and relabelling: the reference of tests and of `benchmarks.speed`.

Every primitive is written here once more, as functions of torch in the default memory layout, and
edges share nothing. A plain network is a copy of one of `model` or `model_search` whose modules
only hold the weights.
"""

from __future__ import annotations

import copy
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import ColorJitter, Compose, RandomCrop, RandomHorizontalFlip, ToTensor

import model
import model_search
from data.augment import Augmentation
from genotypes import PRIMITIVES
from model_search import EDGES, NODES, OPEN, PRUNED


def conv(x: Tensor, module: Any, stride: Any = 1, padding: Any = 0, dilation: int = 1) -> Tensor:
    """A convolution with the weights of `module`, depthwise where those are."""
    groups = x.shape[1] // module.weight.shape[1]
    return F.conv2d(x, module.weight, None, stride, padding, dilation, groups)


def norm(x: Tensor, module: Any) -> Tensor:
    """The batch norm `module`."""
    statistics, affine = (module.running_mean, module.running_var), (module.weight, module.bias)
    return F.batch_norm(x, *statistics, *affine, module.training, module.momentum, module.eps)


def relu_conv_bn(x: Tensor, block: Any, kernel: int, stride: int = 1) -> Tensor:
    return norm(conv(x.relu(), block.op[1], stride, kernel // 2), block.op[2])


def reduction(x: Tensor, block: Any) -> Tensor:
    """The factorized reduction: convolutions of stride 2 of x and of x shifted by a pixel."""
    x = x.relu()
    halves = conv(x, block.conv_1, 2), conv(x[:, :, 1:, 1:], block.conv_2, 2)
    return norm(torch.cat(halves, dim=1), block.bn)


def plain_primitive(name: str, op: Any, x: Tensor, stride: int) -> Tensor:
    """Primitive `name` of x (N, C, H, W) with the weights of its module `op`."""
    if name == "none":
        return 0.0 * x[:, :, ::stride, ::stride]
    if name == "max_pool_3x3":
        return F.max_pool2d(x, 3, stride, 1)
    if name == "avg_pool_3x3":
        return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    if name == "skip_connect":
        return x if stride == 1 else reduction(x, op)
    if name == "ghost":
        (first, norm1, _), (second, norm2, _) = op.primary_conv, op.cheap_operation
        primary = norm(conv(x, first, stride), norm1).relu()
        cheap = norm(conv(primary, second, padding=1), norm2).relu()
        return torch.cat([primary, cheap], dim=1)[:, : x.shape[1]]
    kernel = int(name[-1])
    if name.startswith("sep_conv"):
        _, depth1, point1, norm1, _, depth2, point2, norm2 = op.op
        x = norm(conv(conv(x.relu(), depth1, stride, kernel // 2), point1), norm1)
        return norm(conv(conv(x.relu(), depth2, 1, kernel // 2), point2), norm2)
    if name.startswith("dil_conv"):
        _, depth1, point1, norm1 = op.op
        return norm(conv(conv(x.relu(), depth1, stride, kernel - 1, 2), point1), norm1)
    if name == "conv_7x1_1x7":
        _, wide, high, norm1 = op.op
        x = conv(x.relu(), wide, (1, stride), (0, 3))
        return norm(conv(x, high, (stride, 1), (3, 0)), norm1)
    return relu_conv_bn(x, op, kernel, stride)  # conv_1x1, conv_3x3


class _Plain(nn.Module, ABC):
    """The chain of cells; subclasses compute each from its two first states."""

    def __init__(self, network: model.Network | model_search.Network) -> None:
        super().__init__()
        self.network: Any = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        layers = len(self.network.cells)
        self.reductions = {layers // 3, 2 * layers // 3}

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        """The output of every cell."""
        stem = self.network.stem
        before_last = last = norm(conv(x, stem[0], padding=1), stem[1])
        for index, cell in enumerate(self.network.cells):
            older = (
                reduction(before_last, cell.preprocess0)
                if index - 1 in self.reductions
                else relu_conv_bn(before_last, cell.preprocess0, 1)
            )
            states = [older, relu_conv_bn(last, cell.preprocess1, 1)]
            before_last, last = last, self.cell(cell, states, index in self.reductions)
            yield last

    @abstractmethod
    def cell(self, cell: Any, states: list[Tensor], reduces: bool) -> Tensor:
        """The output of one cell from its two inputs `states`."""


class PlainNetwork(_Plain):
    """A plain copy of a `model.Network`; forward: as that, without drop-path."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        network, auxiliary_logits = self.network, None
        for index, last in enumerate(self.outputs(x)):
            if network.auxiliary and self.training and index == max(self.reductions):
                auxiliary_logits = network.auxiliary_head(last)
        return network.classifier(last.mean(dim=(2, 3))), auxiliary_logits

    def cell(self, cell: Any, states: list[Tensor], reduces: bool) -> Tensor:
        genotype = self.network._genotype
        edges = genotype.reduce if reduces else genotype.normal
        outs = (
            plain_primitive(name, op, states[source], 1 + (reduces and source < 2))
            for op, (name, source) in zip(cell._ops, edges, strict=True)
        )
        for out, other in zip(outs, outs, strict=True):  # computed pair by pair, as needed
            states.append(out + other)
        return torch.cat([states[i] for i in cell.concat], dim=1)


class PlainSupernet(_Plain):
    """A plain copy of a `model_search.Network`, of the same edge states; forward: as that."""

    def forward(self, x: Tensor) -> Tensor:
        *_, last = self.outputs(x)
        return self.network.classifier(last.mean(dim=(2, 3)))

    def cell(self, cell: Any, states: list[Tensor], reduces: bool) -> Tensor:
        network = self.network
        alphas = network.alphas_reduce if reduces else network.alphas_normal
        decisions = network.states["reduce" if reduces else "normal"]
        for node in range(NODES):
            outs = []
            for edge, (target, source) in enumerate(EDGES):
                if target == node and decisions[edge] != PRUNED:
                    weights = {decisions[edge]: 1.0}
                    if decisions[edge] == OPEN:
                        weights = dict(enumerate(alphas[edge].softmax(dim=0)))
                    stride = 1 + (reduces and source < 2)
                    outs.append(self.edge(states[source], cell._ops[edge]._ops, weights, stride))
            states.append(sum(outs[1:], outs[0]))
        return torch.cat(states[2:], dim=1)

    def edge(self, x: Tensor, ops: Any, weights: dict[int, Any], stride: int) -> Tensor:
        """The weighted sum of primitives; with partial channels as in the code of PC-DARTS."""
        parts = self.network.description["partial_channels"]
        width = x.shape[1] // parts
        seen, rest = x[:, :width], x[:, width:]
        out: Any = 0.0
        for k, weight in weights.items():
            primitive = plain_primitive(PRIMITIVES[k], ops[k], seen, stride)
            if "pool" in PRIMITIVES[k]:
                primitive = norm(primitive, ops[k][1])
            out = out + weight * primitive
        if parts == 1:
            return out
        out = torch.cat([out, rest if stride == 1 else F.max_pool2d(rest, 2)], dim=1)
        return out.unflatten(1, (parts, width)).transpose(1, 2).flatten(1, 2)


# --- data and labels


def pil_batches(
    jpegs: Sequence[bytes], batch_size: int, augmentation: Augmentation
) -> Iterator[Tensor]:
    """Images decoded, augmented by torchvision one at a time, and stacked."""
    jitter = ColorJitter(brightness=augmentation.jitter, contrast=augmentation.jitter)
    transform = Compose([RandomCrop(augmentation.crop), RandomHorizontalFlip(), jitter, ToTensor()])
    for first in range(0, len(jpegs), batch_size):
        opened = (Image.open(io.BytesIO(jpeg)) for jpeg in jpegs[first : first + batch_size])
        yield torch.stack([transform(image.convert("L")) for image in opened])


def plain_relabel(
    logits: Tensor, labels: Tensor, *, threshold: float, fes: Tensor | None, fes_threshold: float
) -> list[int]:
    """The rule of `relabelling.relabel`, label by label."""
    new = []
    for row, label in zip(logits, labels, strict=True):
        p = row.softmax(dim=0)
        highest, likeliest = p.max(dim=0)
        gap = highest - p[label]
        repaired = gap < threshold
        if fes is not None:
            repaired = 0 < gap < threshold and fes[label, likeliest] > fes_threshold
        new.append(int(likeliest if repaired else label))
    return new
