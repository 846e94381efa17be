"""The leads to speed: undone or tried they compute the same, by other code, and gains are told."""

from __future__ import annotations

import copy
import json
import shlex
from contextlib import nullcontext
from inspect import getattr_static

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import architect
from benchmarks import (
    benchmark,
    benchmark_leads,
    benchmark_merged,
    benchmark_pairs,
    benchmark_step,
    benchmark_works,
)
from benchmarks.benchmark_leads import BASE, LEADS
from common import cli
from engine import autocast
from genotypes import Auto_FERNet
from model import Network
from model_search import Network as Supernet

CPU = torch.device("cpu")
PATCHED = [name for name, lead in LEADS.items() if lead.patches is not tuple]


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    supernet = Supernet(4, 7, 3).double()
    for alpha in supernet.arch_parameters():
        alpha.data.normal_()
    network = Network(4, 7, 3, True, Auto_FERNet).double()
    return {"search": supernet.train(), "train": network.train(), "evaluate": network.eval()}


def outcome(work: str, model: nn.Module) -> list[Tensor]:
    """What `model` computes in `work`: gradients of the alphas and the weights, or logits."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    model.train(work != "evaluate")
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 1, 16, 16, generator=generator, dtype=torch.float64)
    batch = images, torch.arange(4)
    if work == "evaluate":
        with torch.no_grad():
            return [benchmark_works.network_predictor(model)(images)]
    found: list[Tensor] = []
    if work == "search":
        found += architect.first_order_gradient(
            model, batch, penalty=lambda: torch.zeros(()), precision=autocast(CPU, "off")
        )
        found = [each.clone() for each in found]
        model.zero_grad()
        with architect.held(model.arch_parameters()):
            F.cross_entropy(model(images), batch[1]).backward()
        weights = model.weight_parameters()
    else:
        model.auxiliary = False
        F.cross_entropy(model(images)[0], batch[1]).backward()
        weights = list(model.parameters())
    optimizer = torch.optim.SGD(weights, 0.1, momentum=0.9)
    optimizer.step()
    return [*found, *(weight.detach() for weight in weights)]


@pytest.mark.parametrize("name", PATCHED)
def test_what_is_computed_does_not_hang_on_a_lead(name: str, models: dict[str, nn.Module]) -> None:
    for work in LEADS[name].works:
        expected = outcome(work, models[work])
        with benchmark_leads.changed(name):
            found = outcome(work, models[work])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", PATCHED)
def test_a_lead_changes_the_code_only_as_long_as_it_is_asked_for(name: str) -> None:
    with benchmark_leads.changed(name):
        patches = LEADS[name].patches()
        inside = [getattr_static(each.getter(), each.attribute) for each in patches]
    outside = [getattr_static(each.getter(), each.attribute) for each in patches]
    assert patches
    assert all(a is not b for a, b in zip(inside, outside, strict=True))


def test_every_lead_is_measured_where_it_counts_against_a_side_that_is_measured() -> None:
    for measurement in benchmark_leads.plan(benchmark_pairs.works(short=True)):
        names = [side.name for side in measurement.sides]
        expected = [n for n, lead in LEADS.items() if measurement.title in lead.works]
        assert names == [BASE, *expected]
        assert all(side.against in names for side in measurement.sides[1:])
        parser = benchmark_step.build_parser()
        for side in measurement.sides[1:]:
            assert parser.parse_args(shlex.split(side.flags)).lead == side.name


def test_only_some_leads_are_planned_with_what_they_are_compared_with(tmp_path, capsys) -> None:
    found = {
        measurement.title: [(side.name, side.against) for side in measurement.sides]
        for measurement in benchmark_leads.plan(benchmark_pairs.works(short=True), "layout")
    }
    own, layout = benchmark_leads.OWN_OPERATIONS, "channels-last layout"
    step = [(BASE, None), (own, BASE), (layout, own)]
    assert found == {"search": step, "train": step, "evaluate": [(BASE, None), (layout, BASE)]}
    argv = f"leads --only nothing --out {tmp_path}/x.json".split()
    assert cli.run(benchmark.main, benchmark.build_parser(), argv) == 2
    assert "--only nothing: in the name of no lead; expected one of" in capsys.readouterr().err


def test_gains_are_of_the_lead_over_without_it() -> None:
    half = {"median": 0.5, "least": 0.4, "greatest": 0.8}
    rows = [
        {"side": BASE, "measurement": "search", "times": None, "memory": None},
        {"side": "freed memory kept", "measurement": "search", "times": half, "memory": half},
        {"side": "fused SGD", "measurement": "train", "times": half, "memory": half},
    ]
    kept, tried = benchmark_leads.gains(rows)
    assert kept == ["freed memory kept", "kept", "search", *["2.00 (1.25 to 2.50)"] * 2]
    assert tried == ["fused SGD", "not kept", "train", *["0.50 (0.40 to 0.80)"] * 2]


def test_a_step_is_measured_with_the_lead_that_it_names(monkeypatch, capsys) -> None:
    seen: list[str] = []
    monkeypatch.setattr(benchmark_step, "changed", lambda name: seen.append(name) or nullcontext())
    words = "train --init_channels 2 --layers 3 --batch_size 4 --steps 1 --device cpu".split()
    benchmark_step.main(benchmark_step.build_parser().parse_args(words))
    assert seen == []
    benchmark_step.main(benchmark_step.build_parser().parse_args([*words, "--lead", "fused SGD"]))
    assert seen == ["fused SGD"]


def test_leads_prints_a_row_for_each_and_writes_them(tmp_path, monkeypatch, capsys) -> None:
    def pretended(flags: str) -> dict:
        seconds = 3.0 if "channels-last" in flags else 2.0 if "--lead" in flags else 1.0
        return {"seconds": [seconds], "images": 24, "peak_bytes": 8, "base_bytes": 0, "remarks": []}

    monkeypatch.setattr(benchmark_pairs, "run_side", pretended)
    out = tmp_path / "leads.json"
    argv = benchmark.with_command(f"leads --short --device cpu --out {out}".split())
    assert cli.run(benchmark.main, benchmark.build_parser(), argv) == 0
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 3 + sum(len(lead.works) for lead in LEADS.values())
    printed = capsys.readouterr().out
    halves = printed.count("2.00 (2.00 to 2.00)") + printed.count("0.50 (0.50 to 0.50)")
    assert halves == len(rows) - 3 - 3
    # In a step the layout is seen beside a side that is twice as slow already.
    layout = [line for line in printed.splitlines() if line.startswith("channels-last layout")]
    assert ["1.50" in line for line in layout] == [True, True, False]


@pytest.mark.parametrize("kernel", benchmark_merged.KERNELS)
def test_merged_convolutions_compute_what_they_do_one_by_one(kernel):
    torch.manual_seed(0)
    x, kernels, grad = (
        torch.stack(each).double() if isinstance(each, list) else each.double()
        for each in benchmark_merged.draw(2, 3, 6, kernel, CPU)
    )
    x, kernels = x.detach().requires_grad_(), [k.detach().requires_grad_() for k in kernels]
    norms = [nn.BatchNorm2d(count, affine=False).double() for count in (3, 3, 3, 3, 12)]
    apart = benchmark_merged.apart(x, kernels, norms[:4])
    merged = benchmark_merged.merged(x, kernels, norms[4])
    found, expected = (
        [*outs, *benchmark_merged.gradients(outs, [x, *kernels], grad)] for outs in (merged, apart)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_merged_tells_each_size_and_kernel(capsys):
    argv = "merged --batch_size 2 --rounds 1 --device cpu".split()
    assert cli.run(benchmark.main, benchmark.build_parser(), argv) == 0
    printed = capsys.readouterr().out
    assert printed.count(", one by one") == printed.count("times as fast") == 6
