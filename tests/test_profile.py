"""The profile of a step: each operator has one kind, and shares sum to all of the time."""

from __future__ import annotations

import pytest
import torch

from benchmarks import profile, speed
from benchmarks.profile import KINDS, OTHERS, PROFILED, convolution_gflop, kind_of, shares
from benchmarks.speed import Step


@pytest.mark.parametrize("operator, kind", [
    ("aten::mkldnn_convolution", "convolutions"),
    ("aten::native_batch_norm_backward", "batch norms"),
    ("aten::max_pool2d_with_indices", "pools"),
    ("aten::add_", "sums, products, ReLUs"),
    ("aten::copy_", "copies, joins, zeros"),
    ("Optimizer.step#SGD.step", OTHERS),
])  # fmt: skip
def test_kind_of_operator(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_shares_are_percent_of_all_time() -> None:
    found = shares({"aten::conv2d": 1.0, "aten::convolution_backward": 2.0, "aten::linear": 1.0})
    assert found == {**dict.fromkeys(KINDS, 0.0), "convolutions": 75.0, OTHERS: 25.0}


def test_command_prints_each_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "SHORT", "--init_channels 4 --layers 3 --batch_size 2".split())
    found = profile.main(profile.build_parser().parse_args(["--short", "--device", "cpu"]))
    printed = capsys.readouterr().out
    assert all(text in printed for text in (*KINDS, OTHERS, *PROFILED, "GFLOP/s: "))
    assert list(found) == list(PROFILED)
    assert all(sum(each.values()) == pytest.approx(100.0) for each in found.values())


def test_gflop_are_of_convolutions_alone() -> None:
    conv, linear = torch.nn.Conv2d(2, 3, 5, padding=2, bias=False), torch.nn.Linear(8, 8)
    x = torch.rand(4, 2, 8, 8)
    found = convolution_gflop(Step(lambda: linear(conv(x)), images=4))
    assert found == pytest.approx(2 * 4 * 8 * 8 * 2 * 3 * 5 * 5 / 1e9)
