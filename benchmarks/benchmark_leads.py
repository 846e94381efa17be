"""The leads to speed, one at a time: what each that was kept gives, and what others would.

A lead is undone, or tried, by patching the code for as long as a process measures: the programs
have no switches for them. What they compute stays the same but for rounding.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import architect
import model_search
from benchmarks import benchmark_works
from benchmarks.benchmark_pairs import PARTED, Measurement, Side
from common import cli
from model_search import Source
from operations import ConcatNodes, DepthwiseConv2d, FactorizedReduce

BASE = "ours"
COLUMNS = ("lead", "kept?", "in", "times as fast", "memory")


class Lead(NamedTuple):
    """What the programs do, or with `kept` False could do, for speed or memory.

    `patches` undo it, or do it, and `flags` of benchmarks.benchmark_step likewise, in each of `works`.
    `apart` names a lead that must be undone on both sides for this one to be seen.
    """

    works: Sequence[str]
    patches: Callable[[], Sequence[Any]] = tuple
    flags: str = ""
    kept: bool = True
    apart: str | None = None


def _default_layout() -> Sequence[Any]:
    layout = patch.object(torch, "channels_last", torch.contiguous_format)
    return [layout, *_torch_operations()]


def _torch_operations() -> Sequence[Any]:
    return [*_torch_convolutions(), *_torch_slices(), *_torch_concatenation()]


def _torch_convolutions() -> Sequence[Any]:
    return [patch.object(DepthwiseConv2d, "forward", nn.Conv2d.forward)]


def _torch_slices() -> Sequence[Any]:
    def body(self: FactorizedReduce, positive: Tensor) -> Tensor:
        return torch.cat([self.conv_1(positive), self.conv_2(positive[:, :, 1:, 1:])], dim=1)

    return [patch.object(FactorizedReduce, "body", body)]


def _torch_concatenation() -> Sequence[Any]:
    return [patch.object(ConcatNodes, "apply", lambda *nodes: torch.cat(nodes, dim=1))]


def _every_gradient() -> Sequence[Any]:
    def gradient(model: nn.Module, valid: Any, *, penalty: Any, precision: Any) -> list[Tensor]:
        model.zero_grad()
        (architect._loss(model, {}, valid, precision) + penalty()).backward()
        return [alpha.grad for alpha in architect._open_alphas(model)]

    held = patch.object(architect, "held", lambda _parameters: nullcontext())
    return [held, patch.object(architect, "first_order_gradient", gradient)]


def _anew_for_every_edge() -> Sequence[Any]:
    positive = property(lambda source: torch.relu(source.x))
    pooled = patch.object(Source, "pooled", lambda self, index: self._pools[index](self.x))
    return [patch.object(Source, "positive", positive), pooled]


def _norm_then_scale() -> Sequence[Any]:
    def scaled_norm(norm: nn.BatchNorm2d, x: Tensor, scale: Tensor) -> Tensor:
        return scale.view(-1, 1, 1) * norm(x)

    return [patch.object(model_search, "_scaled_norm", scaled_norm)]


def _memory_given_back() -> Sequence[Any]:
    return [patch.object(cli, "keep_freed_memory", lambda: None)]


def _norms_apart() -> Sequence[Any]:
    def predictor(model: nn.Module) -> Callable[[Tensor], Tensor]:
        network = model.eval()
        return lambda images: network(images)[0]

    return [patch.object(benchmark_works, "network_predictor", predictor)]


def _fused_sgd() -> Sequence[Any]:
    return [patch.object(torch.optim, "SGD", partial(torch.optim.SGD, fused=True))]


def _recomputed_cells() -> Sequence[Any]:
    forward = model_search.Cell.forward

    def recomputing(self: nn.Module, *inputs: Any) -> Tensor:
        return checkpoint(forward, self, *inputs, use_reentrant=False)

    # What is recomputed must find the batch norms as they were; to time it they may track.
    tracking = patch.object(architect, "_statistics_kept", lambda _model: nullcontext())
    return [tracking, patch.object(model_search.Cell, "forward", recomputing)]


OWN_OPERATIONS = "own operations instead of torch's, the next three in one"
STEPS = PARTED[:2]
LEADS: dict[str, Lead] = {
    OWN_OPERATIONS: Lead(STEPS, _torch_operations),
    "depthwise gradients by fast kernels": Lead(STEPS, _torch_convolutions),
    "factorised reduction of even and odd places": Lead(STEPS, _torch_slices),
    "nodes joined with gradients of their own memory": Lead(STEPS, _torch_concatenation),
    "channels-last layout": Lead(PARTED, _default_layout, apart=OWN_OPERATIONS),
    "freed memory kept": Lead(PARTED, _memory_given_back),
    "gradients of alphas or of weights alone": Lead(("search",), _every_gradient),
    "ReLU and pools once a source": Lead(("search",), _anew_for_every_edge),
    "weighting by the batch norm": Lead(("search",), _norm_then_scale),
    "batch norms folded": Lead(("evaluate",), _norms_apart),
    "larger batches": Lead(("evaluate",), flags="--batch_size 24"),
    "fused SGD": Lead(STEPS, _fused_sgd, kept=False),
    "cells recomputed in the backward pass": Lead(("search",), _recomputed_cells, kept=False),
    "bfloat16 (--amp bf16)": Lead(PARTED, flags="--amp bf16", kept=False),
    "torch.compile (--compile)": Lead(("train",), flags="--side compiled", kept=False),
}


@contextmanager
def changed(name: str) -> Iterator[None]:
    """The programs without the lead `name`, or with it where it was not kept."""
    with ExitStack() as stack:
        for each in LEADS[name].patches():
            stack.enter_context(each)
        yield


def plan(works: Mapping[str, str], only: str = "") -> list[Measurement]:
    """A measurement of each of PARTED, given the flags of benchmarks.benchmark_step: a side a lead.

    Of the leads those whose names hold `only`, and what they are compared with.
    """
    sides = {work: _sides(work, works[work], only) for work in PARTED}
    return [
        Measurement(work, [Side(BASE, works[work]), *found])
        for work, found in sides.items()
        if found
    ]


def _sides(work: str, flags: str, only: str) -> list[Side]:
    leads = {name: lead for name, lead in LEADS.items() if work in lead.works}
    chosen = {name for name in leads if only in name}
    chosen |= {leads[name].apart for name in chosen}
    return [
        Side(
            name,
            f"{flags} {lead.flags} --lead {shlex.quote(name)}",
            lead.apart if lead.apart in leads else BASE,
        )
        for name, lead in leads.items()
        if name in chosen
    ]


def gains(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What each lead does, from the rows of its sides: lead, kept, work, times as fast, memory."""
    return [
        [
            row["side"],
            "kept" if LEADS[row["side"]].kept else "not kept",
            row["measurement"],
            *(_ratio(row[key], LEADS[row["side"]].kept) for key in ("times", "memory")),
        ]
        for row in rows
        if row["side"] != BASE
    ]


def _ratio(found: Mapping[str, float], undone: bool) -> str:
    """With the lead over without it; `undone`, what was found is without over with."""
    ends = (found[name] for name in ("median", "least", "greatest"))
    middle, *ends = (1.0 / value if undone else value for value in ends)
    return f"{middle:.2f} ({min(ends):.2f} to {max(ends):.2f})"
