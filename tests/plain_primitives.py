"""The primitives as plain functions: a reference for tests, independent of operations.py."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def standardise(x: Tensor) -> Tensor:
    """Batch norm in training mode, not affine: x (N, C, H, W) over N, H and W."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5)


def windows(x: Tensor, stride: int, outside: float) -> Tensor:
    """The 3x3 neighbourhoods of x (N, C, H, W), padded with `outside`: (N, C, H, W, 9)."""
    padded = F.pad(x, (1, 1, 1, 1), value=outside)
    return padded.unfold(2, 3, stride).unfold(3, 3, stride).flatten(4)


def max_pool(x: Tensor, stride: int) -> Tensor:
    return windows(x, stride, float("-inf")).amax(dim=4)


def average_pool(x: Tensor, stride: int) -> Tensor:
    inside = windows(torch.ones_like(x), stride, 0.0).sum(dim=4)
    return windows(x, stride, 0.0).sum(dim=4) / inside


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0.0)


def pointwise(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return torch.einsum("nchw,dc->ndhw", x[:, :, ::stride, ::stride], weight[:, :, 0, 0])


def depthwise(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    reach = dilation * (weight.shape[2] - 1) // 2
    return F.conv2d(x, weight, None, stride, reach, dilation, groups=x.shape[1])


def factorised_reduction(x: Tensor, convs: Sequence[Tensor]) -> Tensor:
    """Half of the maps from the even rows and columns, half from the odd ones."""
    x = relu(x)
    even, odd = x[:, :, 0::2, 0::2], x[:, :, 1::2, 1::2]
    return standardise(torch.cat([pointwise(even, convs[0]), pointwise(odd, convs[1])], dim=1))


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """As in ShuffleNet: the channels of all groups in turn."""
    order = [group * (x.shape[1] // groups) + i for i in range(x.shape[1] // groups)
             for group in range(groups)]  # fmt: skip
    return x[:, order]


def relu_conv_bn(x: Tensor, conv: Tensor, stride: int = 1) -> Tensor:
    if conv.shape[2] == 1:
        return standardise(pointwise(relu(x), conv, stride))
    return standardise(F.conv2d(relu(x), conv, stride=stride, padding=conv.shape[2] // 2))


def plain_primitive(name: str, convs: Sequence[Tensor], x: Tensor, stride: int) -> Tensor:
    """Primitive `name` of x; `convs` are the weights of its convolutions, in order.

    Batch norms are those of training, not affine; pools are bare.
    """
    if name == "none":
        return 0.0 * x[:, :, ::stride, ::stride]
    if name == "max_pool_3x3":
        return max_pool(x, stride)
    if name == "avg_pool_3x3":
        return average_pool(x, stride)
    if name == "skip_connect":
        return x if stride == 1 else factorised_reduction(x, convs)
    if name.startswith("sep_conv"):
        first, second, third, fourth = convs
        half = standardise(pointwise(depthwise(relu(x), first, stride), second))
        return standardise(pointwise(depthwise(relu(half), third), fourth))
    if name.startswith("dil_conv"):
        first, second = convs
        return standardise(pointwise(depthwise(relu(x), first, stride, dilation=2), second))
    if name == "ghost":
        first, second = convs
        primary = relu(standardise(pointwise(x, first, stride)))
        cheap = relu(standardise(depthwise(primary, second)))
        return torch.cat([primary, cheap], dim=1)[:, : x.shape[1]]
    if name == "conv_7x1_1x7":
        wide = F.conv2d(relu(x), convs[0], stride=(1, stride), padding=(0, 3))
        return standardise(F.conv2d(wide, convs[1], stride=(stride, 1), padding=(3, 0)))
    (only,) = convs  # conv_1x1, conv_3x3
    return relu_conv_bn(x, only, stride)
