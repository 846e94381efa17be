"""BatchNorm2d and sums of them, in float32, against nn.BatchNorm2d in float64."""

import pytest
import torch
from torch import Tensor, nn

from operations import BatchNorm2d, NormSum, weighted_norms


def run(norm: nn.BatchNorm2d, x: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = norm(x)
    # Later layers may change the output in place.
    out.mul_(2.0).backward(grad)
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
def test_norm_matches_float64(shape):
    ours, plain = pair(shape[1])
    x, grad = (torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(2))
    x = 3 * x + 40 * torch.randn(shape[1], 1, 1)
    for found, expected in zip(
        run(ours, x, grad), run(plain, x.double(), grad.double()), strict=True
    ):
        torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=2e-4)
    assert int(ours.num_batches_tracked) == 1


@pytest.mark.parametrize("shape", [(6, 4, 12, 12), (3, 8, 6, 6), (5, 10, 5, 5), (4, 16, 6, 6)])
@pytest.mark.parametrize("count", [1, 3])
def test_weighted_norms_match_float64(shape, count, monkeypatch):
    applied = []
    apply = NormSum.apply
    monkeypatch.setattr(NormSum, "apply", lambda *args: applied.append(len(args)) or apply(*args))
    torch.manual_seed(0)
    branches = [(i + torch.randn(shape)).to(memory_format=torch.channels_last).requires_grad_()
                for i in range(count)]  # fmt: skip
    weights = [torch.rand(shape[1], requires_grad=True) for _ in branches]
    doubles = [[each.detach().double().requires_grad_() for each in both]
               for both in (branches, weights)]  # fmt: skip
    ours = [BatchNorm2d(shape[1], affine=False) for _ in branches]
    plain = [nn.BatchNorm2d(shape[1], affine=False).double() for _ in branches]
    found = weighted_norms(ours, iter(branches), weights)
    expected = sum(
        weight[:, None, None] * norm(x) for norm, x, weight in zip(plain, *doubles, strict=True)
    )
    assert applied == ([] if shape[1] == 16 else [2 + 2 * count])
    grad = torch.randn(shape).to(memory_format=torch.channels_last)
    results = [
        [out, *torch.autograd.grad(out, [*xs, *ws], by), *(b for n in norms for b in n.buffers())]
        for out, xs, ws, by, norms in [
            (found, branches, weights, grad, ours), (expected, *doubles, grad.double(), plain)
        ]
    ]  # fmt: skip
    for each, other in zip(*results, strict=True):
        torch.testing.assert_close(each.double(), other.double(), rtol=1e-4, atol=1e-4)


def test_variance_at_large_means():
    ours, plain = pair(36)
    plain.running_var.zero_()
    ours.running_var.zero_()
    x = 1000 + torch.randn(8, 36, 16, 16).to(memory_format=torch.channels_last)
    ours(x)
    plain(x.double())
    torch.testing.assert_close(ours.running_var.double(), plain.running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("change", [
    lambda x: x.contiguous(), lambda x: x[..., 1:], lambda x: x[:3, :, :3, :3],
])  # fmt: skip
def test_other_layouts_and_counts(change):
    ours, plain = pair(36)
    x = change(torch.randn(4, 36, 8, 8).to(memory_format=torch.channels_last))
    grad = torch.randn(x.shape)
    for found, expected in zip(
        run(ours, x, grad), run(plain, x.double(), grad.double()), strict=True
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_evaluation():
    ours, plain = pair(36)
    x = torch.randn(2, 36, 8, 8).to(memory_format=torch.channels_last)
    expected = plain.eval()(x.double())
    torch.testing.assert_close(ours.eval()(x).double(), expected, rtol=1e-4, atol=1e-4)
