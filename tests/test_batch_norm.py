"""Batch norm of grouped pixels against nn.BatchNorm2d in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from operations import BatchNorm2d


def run(norm: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = norm(x)
    out.backward(grad)
    return out, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var


def pair(channels: int) -> tuple[BatchNorm2d, nn.BatchNorm2d]:
    """Ours, and torch's of the same weights and statistics in float64."""
    torch.manual_seed(0)
    ours = BatchNorm2d(channels)
    nn.init.uniform_(ours.weight)
    nn.init.uniform_(ours.bias)
    nn.init.normal_(ours.running_mean)
    plain = nn.BatchNorm2d(channels).double()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("shape", [(4, 36, 12, 12), (3, 18, 8, 4), (2, 108, 4, 4), (1, 72, 2, 2),
                                   (5, 7, 4, 4), (4, 32, 6, 6)])  # fmt: skip
def test_grouped_batch_norm_matches_float64(shape):
    ours, plain = pair(shape[1])
    x, grad = (torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(2))
    x = 3 * x + 40 * torch.randn(shape[1], 1, 1)
    found, expected = run(ours, x, grad), run(plain, x.double(), grad.double())
    for ours_is, should_be in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_is.double(), should_be, rtol=2e-4, atol=2e-4)
    assert int(ours.num_batches_tracked) == 1


def test_statistics_keep_precision_at_large_means():
    ours, plain = pair(36)
    plain.running_var.fill_(0.0)
    ours.running_var.fill_(0.0)
    x = 1000 + torch.randn(8, 36, 16, 16).to(memory_format=torch.channels_last)
    ours(x)
    plain(x.double())
    torch.testing.assert_close(ours.running_var.double(), plain.running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("change", [
    lambda x: x.contiguous(), lambda x: x[..., 1:], lambda x: x[:3, :, :3, :3],
])  # fmt: skip
def test_other_layouts_and_counts_match_torch(change):
    ours, plain = pair(36)
    x = change(torch.randn(4, 36, 8, 8).to(memory_format=torch.channels_last))
    grad = torch.randn(x.shape)
    found, expected = run(ours, x, grad), run(plain, x.double(), grad.double())
    for ours_is, should_be in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_is.double(), should_be, rtol=1e-4, atol=1e-4)


def test_output_may_be_changed_in_place():
    ours, plain = pair(36)
    x = torch.randn(2, 36, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    y = x.detach().double().requires_grad_()
    ours(x).relu_().square().sum().backward()
    plain(y).relu().square().sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-3, atol=1e-3)


def test_evaluation_is_torchs_own():
    ours, _ = pair(36)
    plain = nn.BatchNorm2d(36)
    plain.load_state_dict(copy.deepcopy(ours.state_dict()))
    x = torch.randn(2, 36, 8, 8).to(memory_format=torch.channels_last)
    assert ours.eval()(x).equal(plain.eval()(x))
