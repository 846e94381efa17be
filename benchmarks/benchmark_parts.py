"""Data, layout and relabelling, each beside what it replaces, in turns within one process.

What is compared takes turns, round after round, so that a machine that is busy for a while slows
all sides alike: trust the ratios first, the seconds second.
"""

from __future__ import annotations

import argparse
import copy
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import ColorJitter, Compose, RandomCrop, RandomHorizontalFlip, ToTensor

from data.augment import Augmentation, spread, training_batches
from data.cache import cache_path
from data.fer2013 import CLASSES, Split, find_fer2013, load_fer2013
from data.fes import TRAINING_FES
from data.relabel import relabel
from engine import Forward, TrainState, autocast, train_one_epoch
from genotypes import resolve_genotype
from model import Network
from utils import Stop, seed_everything

# What search and the fine-tuning on CK+ do to an image: the most that any script does.
AUGMENTATION = Augmentation(jitter=0.5)
# The published values, which are the defaults of the scripts.
GRAD_CLIP, AUXILIARY_WEIGHT = 5.0, 0.4
RELABEL = {"threshold": 0.2, "fes_threshold": 0.03}


class Figures(NamedTuple):
    """What a benchmark found: a table (name, median and best in `unit`), and what it stands for."""

    unit: str
    rows: Sequence[tuple[str, float, float]]
    remarks: Sequence[str]


def take_turns(rounds: int, sides: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds that each side took in each round; a turn before the first warms up, uncounted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            started = time.perf_counter()
            work()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def describe_ratios(slow: Sequence[float], fast: Sequence[float]) -> str:
    """`3.10 (2.90 to 3.30)`: the median of the rounds' ratios, the least and the greatest."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


# ---------------------------------------------------------------- data


def measure_data(args: argparse.Namespace, device: torch.device) -> Figures:
    """Time an epoch of augmented batches, against PIL image by image, and a start."""
    cache = None if args.data == "synthetic" else cache_path(find_fer2013(args.data))
    written_before = _time_written(cache)
    started = time.perf_counter()
    training = load_fer2013(args.data, report=print)["Training"]
    first_start = time.perf_counter() - started
    written = _time_written(cache)

    training = spread(training, args.limit_images)
    count = len(training.images)
    jpegs = [encode(image) for image in spread(training, args.sample).images]
    scale = count / len(jpegs)
    split = training.map(lambda tensor: tensor.to(device))
    batched, one_by_one = "an epoch in augmented batches", "an epoch image by image with PIL"
    if written is None:
        start = "a start, the set drawn" if cache is None else "a start without a cache"
    else:
        start = "a second start, from the cache"
    seconds = take_turns(
        args.rounds,
        {
            batched: lambda: exhaust(augmented(split, args.batch_size), device),
            one_by_one: lambda: exhaust(through_pil(jpegs, args.batch_size), device),
            start: lambda: load_fer2013(args.data),
        },
    )
    seconds[one_by_one] = [scale * each for each in seconds[one_by_one]]
    rows = [(name, median(each), min(each)) for name, each in seconds.items()]
    if written != written_before:
        rows.append(("the first start, its cache written", first_start, first_start))
    remarks = [
        f"an epoch: {count} images in batches of {args.batch_size}, crops of {AUGMENTATION.crop}, "
        f"flips, jitter of {AUGMENTATION.jitter}",
        f"PIL: one process, measured on {len(jpegs)} JPEGs in memory and scaled by {scale:.2f}",
        f"PIL takes {describe_ratios(seconds[one_by_one], seconds[batched])} times as long",
    ]
    return Figures("seconds", rows, remarks)


def _time_written(cache: Path | None) -> int | None:
    return cache.stat().st_mtime_ns if cache is not None and cache.exists() else None


def encode(image: Tensor) -> bytes:
    """An image, uint8 (1, H, W), as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(file, "JPEG")
    return file.getvalue()


def augmented(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch as `data.augment` makes it: AUGMENTATION of whole batches, on the split's device."""
    return training_batches(
        split, batch_size=batch_size, augmentation=AUGMENTATION, seed=0, epoch=0
    )


def through_pil(jpegs: Sequence[bytes], batch_size: int) -> Iterator[Tensor]:
    """Images decoded, given AUGMENTATION by torchvision one at a time, and stacked."""
    jitter = ColorJitter(brightness=AUGMENTATION.jitter, contrast=AUGMENTATION.jitter)
    transform = Compose([RandomCrop(AUGMENTATION.crop), RandomHorizontalFlip(), jitter, ToTensor()])
    for first in range(0, len(jpegs), batch_size):
        opened = (Image.open(io.BytesIO(jpeg)) for jpeg in jpegs[first : first + batch_size])
        yield torch.stack([transform(image.convert("L")) for image in opened])


def exhaust(batches: Iterable[Any], device: torch.device) -> None:
    """Make every batch, and wait until the device has finished the last."""
    for _ in batches:
        pass
    wait_for(device)


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


# ---------------------------------------------------------------- train


def sgd(weights: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """The published optimiser of weights."""
    return torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)


def train_on(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    precision: torch.autocast,
    forward: Forward | None = None,
) -> None:
    """Steps by the loop of the scripts, without a word; without a `forward` it is `model`."""
    train_one_epoch(
        model,
        batches,
        optimizer,
        forward=forward or model,
        state=TrainState(),
        steps=len(batches),
        seed=0,
        learning_rate_at=lambda _: 0.025,
        auxiliary_weight=AUXILIARY_WEIGHT,
        grad_clip=GRAD_CLIP,
        precision=precision,
        report_freq=len(batches) + 1,
        stop=Stop(),
    )


def measure_train(args: argparse.Namespace, device: torch.device) -> Figures:
    """Time training steps of Auto_FERNet in channels-last layout, against the default one."""
    seed_everything(0)
    genotype = resolve_genotype("Auto_FERNet")
    network = Network(args.init_channels, len(CLASSES), args.layers, True, genotype).to(device)
    contiguous = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    count = args.batch_size * args.steps
    # What the images show costs no time, so noise will do.
    images = torch.randint(0, 256, (count, 1, 48, 48), dtype=torch.uint8)
    labels = torch.randint(0, len(CLASSES), (count,))
    split = Split(images, labels).map(lambda tensor: tensor.to(device))
    batches = list(augmented(split, args.batch_size))
    precision = autocast(device, args.amp)

    def trainer(model: nn.Module) -> Callable[[], Any]:
        return partial(train_on, model, sgd(model.parameters()), batches, precision=precision)

    seconds = take_turns(
        args.rounds, {"channels-last": trainer(network), "default layout": trainer(contiguous)}
    )
    rows = [(name, count / median(each), count / min(each)) for name, each in seconds.items()]
    ratios = describe_ratios(seconds["default layout"], seconds["channels-last"])
    remarks = [
        f"Auto_FERNet, C = {args.init_channels}, {args.layers} cells, with its auxiliary head; "
        f"batches of {args.batch_size}, {args.steps} steps a round, --amp {args.amp}",
        f"channels-last trains {ratios} times as many images a second",
    ]
    return Figures("images a second", rows, remarks)


# ---------------------------------------------------------------- relabel


def measure_relabel(args: argparse.Namespace, device: torch.device) -> Figures:
    """Time the relabelling of a batch with FES, against label by label in Python."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(args.batch_size, len(CLASSES), generator=generator).to(device)
    labels = torch.randint(0, len(CLASSES), (args.batch_size,), generator=generator).to(device)
    fes = torch.tensor(TRAINING_FES, dtype=torch.float32, device=device)
    rule = {**RELABEL, "fes": fes}
    at_once, one_by_one = "a batch at once", "a batch label by label"
    repeats = 100  # of the fast side, which is too short for a clock
    seconds = take_turns(
        args.rounds,
        {
            at_once: lambda: [relabel(logits, labels, **rule) for _ in range(repeats)][-1].tolist(),
            one_by_one: lambda: label_by_label(logits, labels, **rule),
        },
    )
    seconds[at_once] = [each / repeats for each in seconds[at_once]]
    changed = int((relabel(logits, labels, **rule) != labels).sum())
    same = relabel(logits, labels, **rule).tolist() == label_by_label(logits, labels, **rule)
    rows = [(name, 1e6 * median(each), 1e6 * min(each)) for name, each in seconds.items()]
    remarks = [
        f"{args.batch_size} random labels, of which {changed} change; "
        f"both ways give {'the same' if same else 'DIFFERENT'} labels",
        f"label by label takes {describe_ratios(seconds[one_by_one], seconds[at_once])} times as "
        "long",
    ]
    return Figures("microseconds", rows, remarks)


def label_by_label(
    logits: Tensor, labels: Tensor, *, threshold: float, fes: Tensor, fes_threshold: float
) -> list[int]:
    """The rule of `data.relabel.relabel`, as one would write it down first."""
    new = []
    for row, label in zip(logits, labels, strict=True):
        p = row.softmax(dim=0)
        highest, likeliest = p.max(dim=0)
        gap = highest - p[label]
        repaired = 0 < gap < threshold and fes[label, likeliest] > fes_threshold
        new.append(int(likeliest if repaired else label))
    return new
