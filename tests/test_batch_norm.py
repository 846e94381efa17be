"""BatchNorm2d and sums of them, in float32 and bfloat16, against nn.BatchNorm2d in float64."""

import pytest
import torch
from torch import Tensor, nn

from kernels.norms import BatchNorm2d, NormSum, weighted_norms


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


def assert_equal(ours: nn.BatchNorm2d, plain: nn.BatchNorm2d, x: Tensor, grad: Tensor, by: float):
    """The same output, gradients and statistics, within `by`."""
    results = zip(run(ours, x, grad), run(plain, x.double(), grad.double()), strict=True)
    for found, expected in results:
        torch.testing.assert_close(found.double(), expected, rtol=by, atol=by)


@pytest.fixture
def used(monkeypatch):
    """How many branches each call of NormSum had, whatever the number of threads."""
    counts = []
    apply = NormSum.apply
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(
        NormSum, "apply", lambda *args: counts.append(len(args) // 2 - 1) or apply(*args)
    )
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [
    (4, 36, 12, 12), (8, 36, 16, 16), (16, 18, 16, 16), (5, 7, 5, 4), (24, 8, 24, 24), (1, 72, 8, 8)
])  # fmt: skip
def test_error_beside_torch(shape, dtype, used):
    ours, plain = pair(shape[1])
    torchs = nn.BatchNorm2d(shape[1])
    torchs.load_state_dict(ours.state_dict())
    x = 2 * torch.randn(shape) + torch.randn(shape[1], 1, 1)
    layout = {"dtype": dtype, "memory_format": torch.channels_last}
    x, grad = x.to(**layout), torch.randn(shape).to(**layout)
    exact = run(plain, x.double(), grad.double())
    results = run(ours, x, grad), run(torchs, x, grad)
    assert used == [1]
    assert int(ours.num_batches_tracked) == 1
    assert results[0][0].dtype == results[0][1].dtype == dtype
    # Sums over few values are as exact as torch's only on average, hence the absolute term.
    least = 1e-6 if dtype == torch.float32 else 1e-3
    factor = 1.5 if dtype == torch.float32 else 2.0
    for own, other, true in zip(*results, exact, strict=True):
        errors = [(each.double() - true).square().mean().sqrt() for each in (own, other)]
        assert errors[0] <= factor * errors[1] + least


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_channels_and_pixels(dtype, used):
    """As of a dead ReLU: channel 0 is constant, and of channel 1 every second column of pixels."""
    ours, plain = pair(36)
    x = torch.randn(4, 36, 8, 8)
    x[:, 0] = 0.0
    x[:, 1, :, ::2] = 0.0
    x = x.to(dtype, memory_format=torch.channels_last)
    grad = torch.ones(4, 36, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    assert_equal(ours, plain, x, grad, 0.05)
    assert used == [1]


@pytest.mark.parametrize("threads, channels, expected", [
    (1, 18, True), (1, 36, False), (2, 36, True), (2, 72, True), (2, 32, False), (2, 108, False),
])  # fmt: skip
def test_where_it_is_used(threads, channels, expected, used, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    BatchNorm2d(channels)(torch.randn(4, channels, 4, 4))
    assert bool(used) == expected


def test_autocast_gives_bfloat16(used):
    norm = nn.Sequential(nn.Conv2d(1, 36, 3, bias=False), BatchNorm2d(36))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(torch.randn(4, 1, 8, 8))
    out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    assert used == [1]
    assert norm[1].weight.grad.dtype == norm[1].running_mean.dtype == torch.float32


@pytest.mark.parametrize("shape", [(6, 4, 12, 12), (3, 8, 6, 6), (5, 10, 5, 5), (4, 16, 6, 6)])
@pytest.mark.parametrize("count", [1, 3])
def test_weighted_norms_match_float64(shape, count, used):
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
    assert used == ([] if shape[1] == 16 else [count])
    grad = torch.randn(shape).to(memory_format=torch.channels_last)
    results = [
        [out, *torch.autograd.grad(out, [*xs, *ws], by), *(b for n in norms for b in n.buffers())]
        for out, xs, ws, by, norms in [
            (found, branches, weights, grad, ours), (expected, *doubles, grad.double(), plain)
        ]
    ]  # fmt: skip
    for each, other in zip(*results, strict=True):
        torch.testing.assert_close(each.double(), other.double(), rtol=1e-4, atol=1e-4)


def test_variance_at_large_means(used):
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
def test_other_layouts_and_counts(change, used):
    ours, plain = pair(36)
    x = change(torch.randn(4, 36, 8, 8).to(memory_format=torch.channels_last))
    assert_equal(ours, plain, x, torch.randn(x.shape), 1e-4)
