"""The networks as the paper describes them, without a trick: the yardstick and oracle of ours.

One module a primitive and edge, torch's own convolutions, default memory layout, nothing computed
once for two, nothing left out. The modules are those of a network of `model` or `model_search`, so
that weights have the same names; the forward passes are written out anew.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import model
import model_search
from model_search import EDGES, NODES, OPEN, PRUNED
from operations import DepthwiseConv2d


class PlainNetwork(nn.Module):
    """A copy of a network of a fixed genotype; forward: as model.Network, without drop-path."""

    def __init__(self, network: model.Network) -> None:
        super().__init__()
        self.network = _plain_copy(network)

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
    """A copy of a supernet, of the same edge states; forward: as model_search.Network."""

    def __init__(self, network: model_search.Network) -> None:
        super().__init__()
        self.network = _plain_copy(network)

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


def _plain_copy(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, DepthwiseConv2d):
                conv = nn.Conv2d(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,
                    child.stride,
                    child.padding,
                    child.dilation,
                    child.groups,
                    bias=False,
                )
                conv.weight = child.weight
                setattr(module, name, conv)
            elif isinstance(child, nn.ReLU):
                setattr(module, name, nn.ReLU())
    return network.to(memory_format=torch.contiguous_format)
