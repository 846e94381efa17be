"""The profile of a step: every operator is of one kind, and the shares are of all the time."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import benchmark, benchmark_profile
from benchmarks.benchmark_pairs import PARTED
from benchmarks.benchmark_profile import (
    COLUMNS,
    KINDS,
    OTHERS,
    RATE,
    gflop_of_convolutions,
    kind_of,
    shares,
)
from benchmarks.benchmark_works import Step
from common import cli


@pytest.mark.parametrize(
    "operator, kind",
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::native_batch_norm_backward", "batch norms"),
        ("aten::max_pool2d_with_indices", "pools"),
        ("aten::add_", "sums, products, ReLUs"),
        ("aten::threshold_backward", "sums, products, ReLUs"),
        ("aten::copy_", "copies, joins, zeros"),
        ("Optimizer.step#SGD.step", OTHERS),
    ],
)
def test_an_operator_is_of_its_kind(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_shares_are_of_all_the_time() -> None:
    found = shares({"aten::conv2d": 1.0, "aten::convolution_backward": 2.0, "aten::linear": 1.0})
    assert found == {**dict.fromkeys(KINDS, 0.0), "convolutions": 75.0, OTHERS: 25.0}


def test_the_command_prints_a_column_for_each_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    measure = benchmark_profile.rows
    monkeypatch.setattr(
        benchmark_profile, "rows", lambda **sizes: tables.append(measure(**sizes)) or tables[-1]
    )
    argv = benchmark.with_command("profile --short --device cpu".split())
    assert cli.run(benchmark.main, benchmark.build_parser(), argv) == 0
    printed = capsys.readouterr().out
    (table,) = tables
    assert [row[0] for row in table] == [*KINDS, OTHERS, "seconds a step", RATE]
    assert all(row[0] in printed for row in table)
    assert re.search(r"a product of large matrices: \d+ GFLOP/s", printed)
    assert float(table[-1][-1]) > 1
    assert COLUMNS[1:] == PARTED
    for column in range(1, len(COLUMNS)):
        percents = [float(row[column]) for row in table[:-2]]
        assert sum(percents) == pytest.approx(100.0, abs=0.5)
        assert percents[0] == max(percents) > 30.0


def test_gflop_are_those_of_the_convolutions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, linear = torch.nn.Conv2d(2, 3, 5, padding=2, bias=False), torch.nn.Linear(8, 8)
    x = torch.rand(4, 2, 8, 8)
    step = Step(lambda: linear(conv(x)), images=4)
    monkeypatch.setitem(benchmark_profile.WORKS, "evaluate", lambda _setup: step)
    found = gflop_of_convolutions("evaluate", short=True, device=torch.device("cpu"))
    assert found == pytest.approx(2 * 4 * 8 * 8 * 2 * 3 * 5 * 5 / 1e9)
