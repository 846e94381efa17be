"""Speed and peak memory of our loops beside a plain implementation.

    python -m benchmarks.speed
    python -m benchmarks.speed --short --only "search step" --rounds 3
    python -m benchmarks.speed --gpu

Each variant of a case runs in a process of its own, so that its peak memory is its own. The
variants take turns, round after round, and ratios are of two variants in the same round, so that
other work on the machine affects both. Prints a table and writes JSON. --gpu measures what a GPU is
used for, in one process, as starting many takes too long, and within minutes.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import search
import train_FER2013
from architect import Architect
from benchmarks.plain import PlainNetwork, PlainSupernet, pil_batches, plain_relabel
from common import arguments
from common.cli import run_script
from common.report import format_table
from common.start import describe_commit, resolve_device
from data.augment import CROP, Augmentation
from data.batches import training_batches
from data.synthetic.fer2013 import draw_fer2013
from data.types import CLASSES, Split
from engine import TrainState, build_optimizer, evaluate, network_predictor, train_one_epoch
from genotypes import Auto_FERNet, Genotype
from model import Network
from model_search import CELLS, NODES, OPEN
from model_search import Network as Supernet
from recipe.compiling import compiled
from recipe.schedules import DropPath
from relabelling import TRAINING_FES, relabel
from runtime.errors import UserError, is_out_of_memory
from runtime.files import make_folder, write_text
from runtime.logs import describe_machine
from runtime.run import Run, autocast
from runtime.startup import keep_freed_memory
from sgas import decide, derive_genotype, score_cells
from utils import seed_everything

Batch = tuple[Tensor, Tensor]
Step = tuple[Callable[[], Any], int]  # what is timed, and the number of its images

# The published sizes; the search has them as defaults.
SIZES = {"search": [], "train": ["--batch_size", "24"]}
SHORT = "--init_channels 4 --layers 3 --batch_size 8".split()
SAMPLE, SHORT_SAMPLE = 4000, 200  # images that a pass over the data augments
LABELS, BATCHES = 512, 20  # that are relabelled
RELABEL = {"threshold": 0.2, "fes_threshold": 0.03}
AUGMENTATION = Augmentation(jitter=0.5)  # as published for the search and for CK+
DECISIONS = 2 * NODES  # until no edge of a cell is open


class Setup(NamedTuple):
    """A variant, its sizes and where it is computed."""

    variant: str
    short: bool
    device: torch.device
    precision: torch.autocast

    @property
    def compiles(self) -> bool:
        """Whether the variant has --compile: of training "compiled", of the search "captured"."""
        return self.variant.endswith(("compiled", "captured"))

    def args(self, script: str, batch_size: int | None = None) -> argparse.Namespace:
        """The command line of `script`, "search" or "train", in these sizes or `batch_size`."""
        parser = {"search": search, "train": train_FER2013}[script].build_parser()
        parser.set_defaults(**arguments.RECIPES.get(self.variant.partition(",")[0], {}))
        larger = ["--batch_size", str(batch_size)] if batch_size else []
        words = SHORT if self.short else [*SIZES[script], *larger]
        return parser.parse_args([*words, "--compile"] if self.compiles else words)

    def run(self) -> Run:
        """A run without a folder."""
        return Run(Path(), self.device, self.precision)

    def batch(self, size: int) -> Batch:
        """Random images, float32 (size, 1, CROP, CROP), and labels, int64 (size,)."""
        labels = torch.randint(0, len(CLASSES), (size,))
        return torch.rand(size, 1, CROP, CROP).to(self.device), labels.to(self.device)


class Case(NamedTuple):
    """What builds the step of a variant, and by variant the one that it is compared with."""

    build: Callable[[Setup], Step]
    variants: dict[str, str | None]


# --- the search


def build_supernet(args: argparse.Namespace, decisions: int) -> Supernet:
    """A supernet of which `decisions` edges of each cell are decided by criterion 1."""
    model = Supernet(args.init_channels, len(CLASSES), args.layers, args.partial_channels)
    for _ in range(decisions):
        decide(model, score_cells(model, {cell: [] for cell in CELLS}, use_history=False))
    return model


def search_step(setup: Setup, decisions: int) -> Step:
    """A step on the alphas, if an edge is open, and one on the weights."""
    if setup.variant == "fixed network":
        return decided_step(setup)
    args = setup.args("search")
    if setup.variant == "partial channels":
        args.partial_channels = 4
    model = build_supernet(args, decisions).to(setup.device)
    train, valid = setup.batch(args.batch_size), setup.batch(args.batch_size)
    if setup.variant == "plain":
        plain = PlainSupernet(model).train()
        architect = Architect(plain.network, args, setup.precision)
        weights = build_optimizer(plain.network.weight_parameters(), args)

        def both_steps() -> None:
            """As in DARTS: every gradient is computed each time, and half of them used."""
            if any(alpha.requires_grad for alpha in plain.network.arch_parameters()):
                plain.zero_grad()
                (F.cross_entropy(plain(valid[0]), valid[1]) + architect.penalty()).backward()
                architect.optimizer.step()
            plain.zero_grad()
            F.cross_entropy(plain(train[0]), train[1]).backward()
            nn.utils.clip_grad_norm_(plain.network.weight_parameters(), args.grad_clip)
            weights.step()

        return both_steps, args.batch_size
    state = search.SearchState(model, args, setup.precision)
    state.graphs.begin(args.batch_size, model.states)
    any_open = any(OPEN in states for states in model.states.values())
    step = partial(search.search_one_epoch, state, [(train, valid if any_open else None)], args)
    return lambda: step(setup.run(), 1), args.batch_size


# --- the fixed network


def _network(args: argparse.Namespace, auxiliary: bool, genotype: Genotype) -> Network:
    return Network(args.init_channels, len(CLASSES), args.layers, auxiliary, genotype)


def training_step(setup: Setup, batch_size: int | None = None) -> Step:
    """A training step of Auto_FERNet with its auxiliary head."""
    args = setup.args("train", batch_size)
    return _training_step(_network(args, True, Auto_FERNet), args, setup)


def decided_step(setup: Setup) -> Step:
    """A training step of the fixed network of a supernet's decisions, without auxiliary head."""
    sizes = setup.args("search")
    model = build_supernet(sizes, DECISIONS)
    scores = score_cells(model, {cell: [] for cell in CELLS}, use_history=False)
    args = argparse.Namespace(**{**vars(setup.args("train")), "batch_size": sizes.batch_size})
    return _training_step(_network(sizes, False, derive_genotype(model, scores)), args, setup)


def _training_step(network: Network, args: argparse.Namespace, setup: Setup) -> Step:
    images, labels = setup.batch(args.batch_size)
    if setup.variant == "plain":
        plain = PlainNetwork(network).train().to(setup.device)
        optimizer = build_optimizer(plain.parameters(), args)

        def step() -> None:
            optimizer.zero_grad()
            logits, auxiliary_logits = plain(images)
            loss = F.cross_entropy(logits, labels)
            if auxiliary_logits is not None:
                loss = loss + args.auxiliary_weight * F.cross_entropy(auxiliary_logits, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), args.grad_clip)
            optimizer.step()

        return step, args.batch_size
    train = TrainState(network.to(setup.device), args, DropPath(0, args.epochs, 0.0))
    epoch = partial(train_one_epoch, train, [(images, labels)], args, setup.run())
    forward = compiled(network, args.batch_size, setup.device) if args.compile else network
    return partial(epoch, steps=1, forward=forward), args.batch_size


def evaluation_step(setup: Setup, batch_size: int | None = None) -> Step:
    """The logits of a batch of whole images, in evaluation mode."""
    args = setup.args("train", batch_size)
    network = _network(args, False, Auto_FERNet).to(setup.device)
    images = torch.randint(0, 256, (args.batch_size, 1, 48, 48), dtype=torch.uint8)
    labels = torch.zeros(args.batch_size, dtype=torch.int64)
    split = Split(images, labels).to(setup.device)
    if setup.variant == "plain":
        plain = PlainNetwork(network).eval()
        return torch.no_grad()(lambda: plain(split.images.float() / 255)), args.batch_size
    predict, run = network_predictor(network), setup.run()
    return lambda: evaluate(predict, split, args.batch_size, run), args.batch_size


# --- data and labels


def data_step(setup: Setup) -> Step:
    """A pass over augmented images; plain: decoded and transformed by PIL one at a time."""
    count = SHORT_SAMPLE if setup.short else SAMPLE
    drawn = draw_fer2013(counts={"Training": count})["Training"]
    size = setup.args("train").batch_size
    if setup.variant == "plain":
        jpegs = []
        for image in drawn.images[:, 0].numpy():
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "JPEG", quality=92)
            jpegs.append(stream.getvalue())
        batches = partial(pil_batches, jpegs, size, AUGMENTATION)
        return lambda: [images.to(setup.device) for images in batches()][-1], count
    split = drawn.to(setup.device)
    drawing: dict[str, Any] = {"augmentation": AUGMENTATION, "seed": 0, "epoch": 0}
    return lambda: list(training_batches(split, batch_size=size, **drawing))[-1], count


def relabel_step(setup: Setup) -> Step:
    """The new labels of batches with FES; plain: label by label in Python."""
    logits = torch.randn(LABELS, len(CLASSES)).to(setup.device)
    labels = torch.randint(0, len(CLASSES), (LABELS,)).to(setup.device)
    fes = torch.tensor(TRAINING_FES, dtype=torch.float32, device=setup.device)
    rule = plain_relabel if setup.variant == "plain" else relabel
    new = partial(rule, logits, labels, fes=fes, **RELABEL)
    return lambda: [new() for _ in range(BATCHES)], BATCHES * LABELS


# --- measuring

_PAIR: dict[str, str | None] = {"plain": None, "ours": "plain"}
_BF16 = {**_PAIR, "bf16": "plain"}
_SEARCH = {**_BF16, "partial channels": "ours"}
CASES = {
    "search step, all edges open": Case(partial(search_step, decisions=0), _SEARCH),
    "search step, half of the edges decided": Case(partial(search_step, decisions=NODES), _SEARCH),
    "search step, all edges decided": Case(
        partial(search_step, decisions=DECISIONS), {**_SEARCH, "fixed network": "ours"}
    ),
    "search step, recipe": Case(
        partial(search_step, decisions=0), {"laptop": None, "laptop, bf16": "laptop"}
    ),
    "training step": Case(training_step, _BF16),
    "evaluation": Case(evaluation_step, _BF16),
    "augmentation": Case(data_step, _PAIR),
    "relabelling": Case(relabel_step, _PAIR),
}
_GPU: dict[str, str | None] = {"fp32": None, "bf16": "fp32"}
_COMPILED = {**_GPU, "bf16, compiled": "bf16"}
_CAPTURED = {**_GPU, "fp32, captured": "fp32", "bf16, captured": "bf16"}
GPU_CASES = {
    **{
        f"training step, batch {size}": Case(partial(training_step, batch_size=size), _COMPILED)
        for size in (24, 64, 128, 256, 512)
    },
    **{f"GPU {name}": Case(CASES[name].build, _CAPTURED) for name in CASES if "edges" in name},
    "evaluation, batch 512": Case(partial(evaluation_step, batch_size=512), _GPU),
}
ALL_CASES = {**CASES, **GPU_CASES}
COLUMNS = (
    "case", "variant", "images", "seconds", "images/s", "peak GB", "compared with",
    "times as fast", "memory",
)  # fmt: skip


def measure(case: str, variant: str, *, short: bool, device: str, steps: int) -> dict[str, Any]:
    """Measure a variant in this process: `seconds` of each step after a first one, or the three of
    compiling, the `images` of a step, and `peak_bytes`: of tensors on CUDA, else of the process
    with its libraries (on Linux).
    """
    seed_everything(0)
    where = torch.device(device)
    if where.type == "cuda":
        gc.collect()  # of the case before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)
    setup = Setup(variant, short, where, autocast(where, "bf16" if "bf16" in variant else "off"))
    step, images = ALL_CASES[case].build(setup)
    untimed = 3 if setup.compiles else 1
    seconds = []
    for _ in range(untimed + steps):
        started = time.perf_counter()
        step()
        if where.type != "cpu":
            getattr(torch, where.type).synchronize()
        seconds.append(time.perf_counter() - started)
    if variant.endswith("compiled"):
        torch.compiler.reset()
    return {"seconds": seconds[untimed:], "images": images, "peak_bytes": _peak_bytes(where)}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not ru_maxrss, which on Linux begins at the peak of the process that started this one.
    return 1024 * int(_search(r"VmHWM:\s*(\d+)", "/proc/self/status") or 0)


def _search(pattern: str, path: str) -> str | None:
    """The group of the first match in a file of Linux; None elsewhere."""
    match = re.search(pattern, Path(path).read_text("utf-8")) if os.path.isfile(path) else None
    return match[1] if match else None


def measure_apart(**options: Any) -> dict[str, Any]:
    """`measure` in a process of its own."""
    prepare = None if options["variant"] == "plain" else keep_freed_memory
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare) as pool:
        return pool.submit(measure, **options).result()


def measure_case(case: str, variants: Sequence[str], rounds: int, **options: Any) -> list[dict]:
    """A row for each variant: its measurements of `rounds` rounds in which they take turns."""
    rows: list[dict[str, Any]] = [
        {"case": case, "variant": name, "rounds": []} for name in variants
    ]
    for number in range(rounds):
        for row in rows:
            print(f"{case}, {row['variant']}, round {number + 1} of {rounds}", flush=True)
            row["rounds"].append(measure_apart(case=case, variant=row["variant"], **options))
    return rows


def measure_gpu(cases: Sequence[str], minutes: float, **options: Any) -> Iterator[list[dict]]:
    """A row of one round for each variant of `cases`, all in this process.

    After `minutes` further ones are skipped. Last come those that are compiled, which takes most of
    a minute each, batches of 64 and 512 before others.
    """
    pairs = [(case, variant) for case in cases for variant in GPU_CASES[case].variants]
    pairs.sort(key=lambda p: p[1].endswith("compiled") * (2 - p[0].endswith((" 64", " 512"))))
    end = time.monotonic() + 60 * minutes
    for case, variant in pairs:
        if time.monotonic() >= end:
            print(f"{case}, {variant}: skipped, as {minutes:g} minutes have passed", flush=True)
            continue
        print(f"{case}, {variant}", flush=True)
        try:
            found = measure(case, variant, **options)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            print(f"{case}, {variant}: skipped, out of memory", flush=True)
        else:
            yield [{"case": case, "variant": variant, "rounds": [found]}]


def format_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for docs/speed.md."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows as text, in COLUMNS: medians, and the ratio of speeds with its range."""
    measured = {
        (row["case"], row["variant"]): (
            np.array([median(r["seconds"]) for r in row["rounds"]]),
            np.array([r["peak_bytes"] for r in row["rounds"]]),
        )
        for row in rows
    }
    table = []
    for row in rows:
        case, variant, images = row["case"], row["variant"], row["rounds"][0]["images"]
        seconds, peaks = measured[case, variant]
        cells = [case, variant, str(images)]
        for value in (np.median(seconds), np.median(images / seconds)):
            cells.append(f"{value:.0f}" if value >= 100 else f"{value:#.3g}")
        cells.append(f"{np.median(peaks) / 1e9:.2f}")
        base = ALL_CASES[case].variants[variant]
        if base is not None and (case, base) in measured:
            times, memory = measured[case, base][0] / seconds, peaks / measured[case, base][1]
            ratio = f"{np.median(times):.2f} ({times.min():.2f} to {times.max():.2f})"
            cells += [base, ratio, f"{np.median(memory):.2f}"]
        table.append(cells + [""] * (len(COLUMNS) - len(cells)))
    return table


# --- the command


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m benchmarks.speed")
    # fmt: off
    add = parser.add_argument
    add("--short", action="store_true",
        help="small networks, a few seconds a case, to see that everything runs")
    add("--rounds", type=arguments.positive_int, metavar="N",
        help="rounds in which the variants take turns (default: 5, or 1 with --short)")
    add("--steps", type=arguments.positive_int, default=3, metavar="N",
        help="steps to time in each process, after a first one")
    add("--only", default="", metavar="TEXT", help="only cases whose names contain TEXT")
    add("--out", default="bench/speed.json", metavar="FILE", help="where the JSON is written")
    add("--gpu", action="store_true",
        help="the cases for a GPU, in one process and one round: training in batches of 24 to 512, "
        "the search, evaluation, in fp32 and bf16, with and without --compile")
    add("--minutes", type=arguments.positive_float, default=5.0, metavar="M",
        help="time after which --gpu starts no further case")
    # fmt: on
    arguments.add_device_argument(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the cases, print the table and return the content of --out."""
    known = GPU_CASES if args.gpu else CASES
    cases = [case for case in known if args.only in case]
    if not cases:
        raise UserError(f"--only {args.only}: in no name of {'; '.join(known)}")
    make_folder("--out", str(Path(args.out).parent))
    device = resolve_device(argparse.Namespace(device=args.device, gpu=None))
    rounds = 1 if args.gpu else args.rounds or (1 if args.short else 5)
    report: dict[str, Any] = {
        "commit": describe_commit() or "unknown",
        "processor": f"{os.cpu_count()} x {_search('model name.*: (.*)', '/proc/cpuinfo')}",
        "machine": describe_machine(device),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "flags": vars(args),
        "rounds": rounds,
        "rows": [],
    }
    print("\n".join(report[name] for name in ("commit", "processor", "machine")))
    options = {"short": args.short, "device": str(device), "steps": args.steps}
    if args.gpu:
        measured: Iterator[list[dict]] = measure_gpu(cases, args.minutes, **options)
    else:
        measured = (measure_case(c, list(CASES[c].variants), rounds, **options) for c in cases)
    for rows in measured:
        report["rows"] += rows
        write_text(args.out, json.dumps(report, indent=1) + "\n")  # kept if a later case fails
    report["rows"].sort(key=lambda row: cases.index(row["case"]))
    form = format_markdown if args.gpu else format_table
    print(f"\n{form(COLUMNS, table_rows(report['rows']))}\n")
    print(f"times as fast: median of {rounds} rounds (min to max); written: {args.out}")
    return report


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
