"""Augmentation: random crops, flips, warps, jitter and erasing, a batch at once, on its device."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

# Side of a training image in pixels, and of the crops of test-time augmentation.
CROP = 44
# Degrees of rotation for an affine strength of 1: 20 % come with 10 degrees, as published.
ROTATION = 50.0
# Random erasing's shares of the image and ratios of height to width, as published.
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images: sizes in pixels; `jitter` j gives factors in [1-j, 1+j].

    `affine` a shifts by up to a of the image's side both ways, scales by [1-a, 1+a] and rotates by
    up to `ROTATION` a degrees (Khaireddin and Chen, 2021, had a = 0.2); `erasing` is the
    probability of random erasing (Zhong et al., 2017).
    """

    crop: int = CROP
    flip: bool = True
    jitter: float = 0.0
    cutout: int = 0
    affine: float = 0.0
    erasing: float = 0.0


@dataclass(frozen=True)
class Draws:
    """The random numbers that augment N images; every field has N rows."""

    corner: Tensor  # int64 (N, 2): first row and column of the crop
    flipped: Tensor  # bool (N,)
    brightness: Tensor  # float32 (N,): factor
    contrast: Tensor  # float32 (N,): factor
    contrast_first: Tensor  # bool (N,): the two jitters come in random order
    hole: Tensor  # int64 (N, 2): centre of the cutout square in the crop
    angle: Tensor  # float32 (N,): degrees, clockwise
    scale: Tensor  # float32 (N,): factor
    shift: Tensor  # float32 (N, 2): pixels to the right and down
    erased: Tensor  # int64 (N, 4): top, left, height, width in the crop; of size 0 if none

    def take(self, index: Tensor) -> Draws:
        """The draws of the images at `index`."""
        return Draws(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def to(self, device: torch.device) -> Draws:
        """The same draws on `device`."""
        return Draws(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def draw(augmentation: Augmentation, count: int, size: int, generator: torch.Generator) -> Draws:
    """Random numbers for `count` images of `size` x `size` pixels, from a CPU generator."""
    crop, jitter, affine = augmentation.crop, augmentation.jitter, augmentation.affine

    def between(low: float, high: float, *columns: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *columns, generator=generator)

    def rectangles() -> Tensor:
        area = between(*ERASED_AREA) * crop * crop
        ratio = between(math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])).exp()
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1)
        sides = sides.round().clamp(1, crop)
        corner = (between(0.0, 1.0, 2) * (crop - sides + 1)).floor().clamp(max=crop - sides)
        chosen = torch.rand(count, generator=generator) < augmentation.erasing
        return (torch.cat([corner, sides], dim=1) * chosen[:, None]).long()

    return Draws(
        corner=torch.randint(0, size - crop + 1, (count, 2), generator=generator),
        flipped=(torch.rand(count, generator=generator) < 0.5) & augmentation.flip,
        brightness=between(1.0 - jitter, 1.0 + jitter),
        contrast=between(1.0 - jitter, 1.0 + jitter),
        contrast_first=torch.rand(count, generator=generator) < 0.5,
        hole=torch.randint(0, crop, (count, 2), generator=generator),
        # Drawn last, so that older runs resume with the same numbers.
        angle=between(-ROTATION * affine, ROTATION * affine),
        scale=between(1.0 - affine, 1.0 + affine),
        shift=between(-size * affine, size * affine, 2),
        erased=rectangles(),
    )


def to_float(images: Tensor) -> Tensor:
    """uint8 (N, 1, H, W) to float32 in [0, 1]."""
    return images.to(torch.float32).div_(255.0)


def augment(images: Tensor, draws: Draws, augmentation: Augmentation) -> Tensor:
    """uint8 (N, 1, H, W) to float32 (N, 1, crop, crop) in [0, 1]: warp, crop, flip, jitter, erase.

    The warp is torchvision's bilinear `affine`, black outside the image. The jitters are its
    `adjust_brightness` and `adjust_contrast` of gray images, each clamped to [0, 1]; cutout
    (DeVries and Taylor, 2017) zeroes a square clipped at the border, random erasing a rectangle
    inside it.
    """
    crop = augmentation.crop
    if augmentation.affine > 0:
        images = _warp(to_float(images), draws)
    # A view of all windows: (N, rows of the corner, columns of the corner, crop, crop).
    windows = images[:, 0].unfold(1, crop, 1).unfold(2, crop, 1)
    rows, columns = draws.corner.unbind(1)
    x = windows[torch.arange(len(images), device=images.device), rows, columns].unsqueeze(1)
    x = torch.where(_per_image(draws.flipped), x.flip(-1), x)
    x = x if x.is_floating_point() else to_float(x)
    if augmentation.jitter > 0:
        _jitter_(x, draws)
    if augmentation.cutout > 0:
        start = draws.hole - augmentation.cutout // 2
        x.masked_fill_(_inside(start, start + augmentation.cutout, crop), 0.0)
    if augmentation.erasing > 0:
        start, size = draws.erased.split(2, dim=1)
        x.masked_fill_(_inside(start, start + size, crop), 0.0)
    return x


def resize(images: Tensor, size: int | None) -> Tensor:
    """Resize float (N, C, H, W) to (N, C, size, size), bilinear with antialiasing; None: unchanged.

    Equal to Pillow's bilinear resize, which widens the kernel when an image shrinks.
    """
    if size is None or images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _warp(x: Tensor, draws: Draws) -> Tensor:
    # The inverse map from output to input pixels, in units of half a side.
    angle = draws.angle.deg2rad()
    cos, sin = angle.cos() / draws.scale, angle.sin() / draws.scale
    right, down = (draws.shift * (2.0 / x.shape[-1])).unbind(1)
    rows = [cos, sin, -cos * right - sin * down, -sin, cos, sin * right - cos * down]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    # Rounding may give values above one.
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False).clamp_(0.0, 1.0)


def _jitter_(x: Tensor, draws: Draws) -> None:
    brightness, contrast = _per_image(draws.brightness), _per_image(draws.contrast)
    # Brightness comes first or last, as a multiplication by one in the other place.
    last = _per_image(draws.contrast_first)
    x.mul_(brightness.where(~last, 1.0)).clamp_(0.0, 1.0)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x.mul_(contrast).add_((1.0 - contrast) * mean).clamp_(0.0, 1.0)
    x.mul_(brightness.where(last, 1.0)).clamp_(0.0, 1.0)


def _inside(start: Tensor, end: Tensor, crop: int) -> Tensor:
    """True from `start` to before `end`, row and column (N, 2): bool (N, 1, crop, crop)."""
    steps = torch.arange(crop, device=start.device)
    rows, columns = ((steps >= start[:, :, None]) & (steps < end[:, :, None])).unbind(1)
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
