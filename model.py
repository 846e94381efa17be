"""The network of a fixed genotype."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from genotypes import Genotype, format_genotype, parse_genotype
from kernels.layouts import concat_nodes
from kernels.norms import BatchNorm2d
from operations import FactorizedReduce, build_primitive, drop_path, preprocessing


class Cell(nn.Module):
    """A cell of `genotype`: a node is the sum of two edges, the output a concatenation of nodes."""

    def __init__(
        self,
        genotype: Genotype,
        channels_before_last: int,
        channels_last: int,
        channels: int,
        reduction: bool,
        reduction_before: bool,
    ) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1 = preprocessing(
            channels_before_last, channels_last, channels, reduction_before, affine=True
        )
        edges = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.inputs = tuple(source for _, source in edges)
        self._ops = nn.ModuleList(
            build_primitive(primitive, channels, 2 if reduction and source < 2 else 1, True)
            for primitive, source in edges
        )

    def forward(self, before_last: Tensor, last: Tensor, drop_path_prob: Tensor | None) -> Tensor:
        """`before_last` and `last`: the outputs of the two previous cells, after a ReLU."""
        states = [self.preprocess0.after_relu(before_last), self.preprocess1.after_relu(last)]
        for first in range(0, len(self._ops), 2):
            states.append(
                self._edge(first, states, drop_path_prob)
                + self._edge(first + 1, states, drop_path_prob)
            )
        return concat_nodes([states[i] for i in self.concat])

    def _edge(self, index: int, states: list[Tensor], drop_path_prob: Tensor | None) -> Tensor:
        op = self._ops[index]
        out = op(states[self.inputs[index]])
        if self.training and drop_path_prob is not None and not isinstance(op, nn.Identity):
            out = drop_path(out, drop_path_prob)
        return out


class AuxiliaryHead(nn.Module):
    """The auxiliary classifier at two thirds of the depth, used in training only.

    (N, C, H, W) to logits (N, num_classes); H and W at least 8.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3, padding=0, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Network(nn.Module):
    """The network of `genotype`: stem, `layers` cells with two reductions, pool, classifier.

    `C` is the number of channels of the first cell; channels double at cells layers // 3 and
    2 * layers // 3. forward: (N, 1, H, W) float in [0, 1], H and W multiples of 4, to
    (logits (N, num_classes), auxiliary logits or None); the latter exist only in training mode and
    with `auxiliary`. `drop_path_prob` in [0, 1) is not part of the state dict. Convolutions run in
    channels-last layout, which is faster on CPUs and GPUs.
    """

    _drop_path_prob: Tensor

    def __init__(
        self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype
    ) -> None:
        super().__init__()
        self._arguments = {"C": C, "num_classes": num_classes, "layers": layers}
        self._genotype = genotype
        self.auxiliary = auxiliary
        self.register_buffer("_drop_path_prob", torch.zeros(()), persistent=False)
        self.drop_path_prob = 0.0
        channels_before_last = channels_last = 3 * C
        self.stem = nn.Sequential(nn.Conv2d(1, 3 * C, 3, padding=1, bias=False), BatchNorm2d(3 * C))
        self.relu = nn.ReLU(inplace=True)
        self.cells = nn.ModuleList()
        self.auxiliary_cell = 2 * layers // 3
        channels, reduction_before = C, False
        for index in range(layers):
            reduction = index in (layers // 3, 2 * layers // 3)
            channels = 2 * channels if reduction else channels
            cell = Cell(
                genotype, channels_before_last, channels_last, channels, reduction, reduction_before
            )
            reduction_before = reduction
            self.cells.append(cell)
            channels_before_last, channels_last = channels_last, channels * len(cell.concat)
            if auxiliary and index == self.auxiliary_cell:
                self.auxiliary_head = AuxiliaryHead(channels_last, num_classes)
        self.classifier = nn.Linear(channels_last, num_classes)
        self.to(memory_format=torch.channels_last)

    @property
    def description(self) -> dict[str, Any]:
        """The arguments of the network as plain values, for `build_network`."""
        genotype = format_genotype(self._genotype)
        return {**self._arguments, "auxiliary": self.auxiliary, "genotype": genotype}

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layers by new ones of `num_classes`, drawn at random."""
        self._arguments["num_classes"] = num_classes
        self.classifier = nn.Linear(self.classifier.in_features, num_classes)
        if self.auxiliary:
            head = self.auxiliary_head
            head.classifier = nn.Linear(head.classifier.in_features, num_classes)

    @property
    def num_parameters(self) -> int:
        """Number of parameters without the auxiliary head, which is used in training only."""
        return sum(p.numel() for n, p in self.named_parameters() if "auxiliary" not in n)

    @property
    def drop_path_prob(self) -> float:
        """Drop-path probability in training mode, in [0, 1)."""
        return self._drop_path_float

    @drop_path_prob.setter
    def drop_path_prob(self, value: float) -> None:
        # Also as a tensor: each new value of a number would recompile a compiled forward.
        self._drop_path_float = value
        self._drop_path_prob.fill_(value)
        self._drops_paths = value > 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        out, last = self.stem(x), None
        auxiliary_logits = None
        drop_path_prob = self._drop_path_prob if self._drops_paths else None
        for index, cell in enumerate(self.cells):
            # Both cells that read an output begin with a ReLU; it is computed once.
            positive = self.relu(out)
            before_last, last = positive if last is None else last, positive
            out = cell(before_last, last, drop_path_prob)
            if self.auxiliary and self.training and index == self.auxiliary_cell:
                auxiliary_logits = self.auxiliary_head(out)
        logits = self.classifier(out.mean(dim=(2, 3)))
        return logits, auxiliary_logits


def fuse_batch_norms(network: Network) -> Network:
    """A copy for evaluation with every batch norm merged into the convolution before it.

    Its logits are equal up to rounding; its state dict has other keys.
    """
    network = copy.deepcopy(network).eval()
    for block in list(network.modules()):
        if isinstance(block, FactorizedReduce):
            block.fuse()
        elif isinstance(block, nn.Sequential):
            for place, (conv, norm) in enumerate(pairwise(block)):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    block[place] = fuse_conv_bn_eval(conv, norm)
                    block[place + 1] = nn.Identity()
    return network


def build_network(description: dict[str, Any], source: str = "genotype") -> Network:
    """The network of `Network.description`: C, num_classes, layers, auxiliary, genotype (text)."""
    return Network(**{**description, "genotype": parse_genotype(description["genotype"], source)})
