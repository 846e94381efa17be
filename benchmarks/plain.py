"""A plain implementation of the networks: the reference of tests and of `benchmarks.speed`.

One module for each primitive and edge, torch's own convolutions, the default memory layout, nothing
shared between edges. The weights are copies of those of a network of `model` or `model_search`,
under the same names.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import model
import model_search
from kernels.convolutions import DepthwiseConv2d
from model_search import EDGES, NODES, OPEN, PRUNED
from operations import ConvBlock, FactorizedReduce, Ghost


class PlainNetwork(nn.Module):
    """A plain copy of a `model.Network`; forward: as that, without drop-path."""

    def __init__(self, network: model.Network) -> None:
        super().__init__()
        self.network: Any = _plain_copy(network)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        network, auxiliary_logits = self.network, None
        before_last = last = network.stem(x)
        for index, cell in enumerate(network.cells):
            states = [cell.preprocess0(before_last), cell.preprocess1(last)]
            outs = zip(cell._ops, cell.inputs, strict=True)
            for (op1, source1), (op2, source2) in zip(outs, outs, strict=True):
                states.append(op1(states[source1]) + op2(states[source2]))
            before_last, last = last, torch.cat([states[i] for i in cell.concat], dim=1)
            if network.auxiliary and self.training and index == network.auxiliary_cell:
                auxiliary_logits = network.auxiliary_head(last)
        return network.classifier(last.mean(dim=(2, 3))), auxiliary_logits


class PlainSupernet(nn.Module):
    """A plain copy of a `model_search.Network`, of the same edge states; forward: as that."""

    def __init__(self, network: model_search.Network) -> None:
        super().__init__()
        self.network: Any = _plain_copy(network)

    def forward(self, x: Tensor) -> Tensor:
        network = self.network
        before_last = last = network.stem(x)
        for cell in network.cells:
            kind = "reduce" if cell.reduction else "normal"
            alphas = network.alphas_reduce if cell.reduction else network.alphas_normal
            states = [cell.preprocess0(before_last), cell.preprocess1(last)]
            for node in range(NODES):
                outs = []
                for edge, (target, source) in enumerate(EDGES):
                    state, ops = network.states[kind][edge], cell._ops[edge]._ops
                    if target != node or state == PRUNED:
                        continue
                    if state == OPEN:
                        weights = alphas[edge].softmax(dim=0)
                        terms = zip(weights, ops, strict=True)
                        outs.append(sum(weight * op(states[source]) for weight, op in terms))
                    else:
                        outs.append(ops[state](states[source]))
                states.append(sum(outs))
            before_last, last = last, torch.cat(states[2:], dim=1)
        return network.classifier(last.mean(dim=(2, 3)))


class PlainBlock(nn.Module):
    """A ReLU, convolutions and a batch norm, one after the other."""

    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        self.op = block.op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class PlainReduce(nn.Module):
    """The factorized reduction: convolutions of stride 2 of x and of x shifted by a pixel."""

    def __init__(self, block: FactorizedReduce) -> None:
        super().__init__()
        self.conv_1, self.conv_2, self.bn = block.conv_1, block.conv_2, block.bn

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class PlainGhost(nn.Module):
    """The ghost module: half of the maps by a 1x1 convolution, the others computed from those."""

    def __init__(self, block: Ghost) -> None:
        super().__init__()
        self.channels = block.channels
        self.primary_conv, self.cheap_operation = block.primary_conv, block.cheap_operation

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)[:, : self.channels]


def _plain_copy(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    # Inner modules first, so that a block is rebuilt around plain convolutions.
    for module in reversed(list(network.modules())):
        for name, child in module.named_children():
            setattr(module, name, _plain_module(child))
    return network.to(memory_format=torch.contiguous_format)


def _plain_module(module: nn.Module) -> nn.Module:
    if isinstance(module, DepthwiseConv2d):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        sizes: Any = {name: getattr(module, name) for name in names}
        conv = nn.Conv2d(**sizes, groups=module.groups, bias=False)
        conv.weight = module.weight
        return conv
    if isinstance(module, nn.ReLU):
        return nn.ReLU()
    if isinstance(module, FactorizedReduce):
        return PlainReduce(module)
    if isinstance(module, ConvBlock):
        return PlainBlock(module)
    if isinstance(module, Ghost):
        return PlainGhost(module)
    return module
