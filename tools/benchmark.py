"""How fast the parts are on this machine, each beside what it replaces.

    python -m tools.benchmark data --data PATH
    python -m tools.benchmark train

What is compared runs in turns within one process, several rounds, so that a machine that is busy
for a while slows both sides alike: read the ratios first, the seconds second.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from data.augment import Augmentation, spread, training_batches
from data.cache import cache_path
from data.fer2013 import CLASSES, Split, find_fer2013, load_fer2013
from engine import Stop, TrainState, autocast, train_one_epoch
from genotypes import resolve_genotype
from model import Network
from tools import cli
from tools.report import format_table
from utils import describe_machine, seed_everything

# What search and the fine-tuning on CK+ do to an image: the most that any script does.
AUGMENTATION = Augmentation(jitter=0.5)


class Figures(NamedTuple):
    """What a benchmark found: a table, what must be said with it, and its values by name."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    remarks: Sequence[str]
    values: dict[str, Any]


# ---------------------------------------------------------------- data


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `data`."""
    parser.add_argument(
        "--data",
        default="data/",
        metavar="PATH",
        help="FER2013 as a CSV, folder or archive, a folder that holds one, or 'synthetic' "
        "(default: data/, where git ignores it)",
    )
    parser.add_argument(
        "--sample",
        type=cli.positive_int,
        default=4000,
        metavar="N",
        help="images that go through PIL in a round (default: 4000, seconds; scaled to an epoch)",
    )
    parser.add_argument(
        "--limit_images",
        type=cli.positive_int,
        metavar="N",
        help="at most N training images make the epoch, for a short try (default: no limit)",
    )


def measure_data(args: argparse.Namespace, device: torch.device) -> Figures:
    """An epoch of augmented batches, against PIL image by image; a start with the cache there."""
    cache = None if args.data == "synthetic" else cache_path(find_fer2013(args.data))
    before = _written_at(cache)
    first_start, splits = timed(lambda: load_fer2013(args.data, report=print))
    had_cache = before is not None and before == _written_at(cache)
    whole = spread(splits["Training"], args.limit_images)
    split = whole.map(lambda tensor: tensor.to(device))
    count = len(whole.images)
    sample = spread(whole, args.sample).images
    files = [encode(image) for image in sample]
    scale = count / len(files)

    starts, batched, one_by_one = [], [], []
    consume(training_batches(split, **_epoch(args, 0)), device)
    for epoch in range(1, args.rounds + 1):
        starts.append(timed(lambda: load_fer2013(args.data))[0])
        batches = training_batches(split, **_epoch(args, epoch))
        batched.append(timed(lambda batches=batches: consume(batches, device))[0])
        images = pil_batches(files, args.batch_size)
        one_by_one.append(scale * timed(lambda images=images: consume(images, device))[0])

    ratios = [slow / fast for slow, fast in zip(one_by_one, batched, strict=True)]
    if args.data == "synthetic":
        start = "start: the set drawn"
    elif _written_at(cache) is None:
        start = "start: the set read, as no cache could be written"
    else:
        start = "second start: the set from its cache"
    rows = [
        ["an epoch of augmented batches", *summary(batched)],
        ["the same, image by image with PIL", *summary(one_by_one)],
        [start, *summary(starts)],
    ]
    if cache is not None and not had_cache:
        rows.append(["first start: the set read, its cache written", first_start, first_start])
    remarks = [
        f"an epoch: {count} images in batches of {args.batch_size}; crops of {AUGMENTATION.crop}, "
        f"flips, jitter of {AUGMENTATION.jitter}",
        f"PIL: one process, measured on {len(files)} JPEGs in memory and multiplied by {scale:.2f}",
        f"PIL takes {ratio_line(ratios)} times as long",
    ]
    values = {"batched": batched, "one_by_one": one_by_one, "starts": starts, "ratios": ratios}
    return Figures(["seconds", "median", "best"], rows, remarks, values)


def _epoch(args: argparse.Namespace, epoch: int) -> dict[str, Any]:
    return {
        "batch_size": args.batch_size,
        "augmentation": AUGMENTATION,
        "seed": 0,
        "epoch": epoch,
    }


def _written_at(cache: Path | None) -> int | None:
    return cache.stat().st_mtime_ns if cache is not None and cache.exists() else None


def encode(image: Tensor) -> bytes:
    """A uint8 image (1, H, W) as the JPEG that the folder form of FER2013 would hold."""
    file = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(file, "JPEG")
    return file.getvalue()


def pil_batches(files: Sequence[bytes], batch_size: int) -> Iterator[Tensor]:
    """Encoded images decoded, transformed by torchvision one at a time, and stacked."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(AUGMENTATION.crop),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(AUGMENTATION.jitter, AUGMENTATION.jitter),
            transforms.ToTensor(),
        ]
    )
    for first in range(0, len(files), batch_size):
        opened = (Image.open(io.BytesIO(file)) for file in files[first : first + batch_size])
        yield torch.stack([transform(image.convert("L")) for image in opened])


# ---------------------------------------------------------------- train


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `train`."""
    add = parser.add_argument
    add(
        "--init_channels",
        type=cli.positive_int,
        default=16,
        metavar="C",
        help="channels of the first cell (default: 16, a third of the time of the published 36)",
    )
    add(
        "--layers",
        type=cli.positive_int,
        default=8,
        metavar="L",
        help="cells (default: 8, for the same reason; 12 as published)",
    )
    add(
        "--steps",
        type=cli.positive_int,
        default=10,
        metavar="N",
        help="steps of either layout in a round (default: 10, seconds on two cores)",
    )
    add("--amp", choices=["auto", "off", "bf16"], default="auto",
        help="precision of the forward pass (default: auto, bf16 on CUDA that has it)")  # fmt: skip


def measure_train(args: argparse.Namespace, device: torch.device) -> Figures:
    """Training steps of Auto_FERNet in channels-last layout, against the default layout."""
    seed_everything(0)
    network = Network(
        args.init_channels, len(CLASSES), args.layers, True, resolve_genotype("Auto_FERNet")
    ).to(device)
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    count = args.batch_size * args.steps
    # What an image shows costs no time: noise will do.
    images = torch.randint(0, 256, (count, 1, 48, 48), dtype=torch.uint8, device=device)
    split = Split(images, torch.randint(0, len(CLASSES), (count,), device=device))
    batches = list(training_batches(split, **_epoch(args, 0)))
    precision = autocast(device, args.amp)

    speeds: dict[str, list[float]] = {"channels-last": [], "default layout": []}
    models = [network, plain]
    optimizers = [
        torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
        for model in models
    ]
    for turn in range(args.rounds + 1):
        for speed, model, optimizer in zip(speeds.values(), models, optimizers, strict=True):
            seconds, _ = timed(
                lambda model=model, optimizer=optimizer: train_one_epoch(
                    model,
                    batches,
                    optimizer,
                    state=TrainState(),
                    steps=args.steps,
                    seed=0,
                    learning_rate_at=lambda _step: 0.025,
                    auxiliary_weight=0.4,
                    grad_clip=5.0,
                    precision=precision,
                    report_freq=args.steps + 1,
                    stop=Stop(),
                )
            )
            # The first turn is slow everywhere: memory is fetched, kernels are chosen.
            if turn > 0:
                speed.append(count / seconds)

    ratios = [fast / slow for fast, slow in zip(*speeds.values(), strict=True)]
    rows = [[name, statistics.median(each), max(each)] for name, each in speeds.items()]
    remarks = [
        f"Auto_FERNet with C = {args.init_channels}, {args.layers} cells and the auxiliary head; "
        f"batches of {args.batch_size}, {args.steps} steps a round, --amp {args.amp}",
        f"channels-last trains {ratio_line(ratios)} times as many images a second",
    ]
    values = {**speeds, "ratios": ratios}
    return Figures(["images a second", "median", "best"], rows, remarks, values)


# ---------------------------------------------------------------- what they share


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` takes, and what it returns; it waits for the device itself."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def consume(batches: Iterator[Any], device: torch.device) -> None:
    """Make every batch, and wait until the device has finished the last."""
    for _ in batches:
        pass
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def summary(seconds: Sequence[float]) -> tuple[float, float]:
    """The median and the best of some times."""
    return statistics.median(seconds), min(seconds)


def ratio_line(ratios: Sequence[float]) -> str:
    """`3.10 (2.90 to 3.30)`: the median of the rounds' ratios, the least and the greatest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


COMMANDS = {"data": (add_data_flags, measure_data), "train": (add_train_flags, measure_train)}


def build_parser() -> argparse.ArgumentParser:
    """The command line: a subcommand a benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (add_flags, measure) in COMMANDS.items():
        command = commands.add_parser(name, help=measure.__doc__, description=measure.__doc__)
        add_flags(command)
        add = command.add_argument
        add(
            "--batch_size",
            type=cli.positive_int,
            default=64,
            metavar="N",
            help="images a batch (default: 64, the published value)",
        )
        add(
            "--rounds",
            type=cli.positive_int,
            default=5,
            metavar="N",
            help="times that each side is measured (default: 5, for a median)",
        )
        add("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps",
            help="where to compute (default: auto, which takes CUDA, then MPS, then the CPU)")  # fmt: skip
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark that was asked for and print its table."""
    device = cli.resolve_device(args.device, None)
    _, measure = COMMANDS[args.command]
    print(describe_machine(device), flush=True)
    figures = measure(args, device)
    print(f"\n{format_table(figures.columns, figures.rows)}\n")
    print("\n".join(figures.remarks))
    return figures.values


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
