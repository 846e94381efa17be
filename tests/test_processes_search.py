"""Several processes that search, against an oracle: one that computes their shards in turn."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_runs import accumulate, assert_close, finish, in_double, parts, start, words_of
from runs import LIMIT, SEARCH, raise_after, read, same
from torch.nn import functional as F

import search
from architect import frozen
from benchmarks.runs import Child
from common.parsing import parse
from data import augment
from data.augment import Augmentation
from data.batches import training_batches
from data.halves import alphas_batches
from data.types import Split
from model_search import OPEN, PRUNED, Network
from recipe.schedules import cosine
from runtime.processes import process_group, rank
from runtime.run import Run, autocast
from search import SearchState
from sgas import decide, score_cells

CPU = torch.device("cpu")
AUGMENTATION = Augmentation(crop=8, jitter=0.5)
FLAGS = "--batch_size 8 --batch_increase 4 --use_history --seed 2"
# Flags, epochs, and the epochs (from 0) with a decision.
FIRST = ("--no-unrolled --warmup_dec_epoch 1 --decision_freq 2", 4, (1, 3))
# The second order takes long, and so begins with three open edges in each kind of cell.
PARTLY = [4, 1, OPEN, PRUNED, 10, 7, 9, PRUNED, PRUNED, OPEN, 8, PRUNED, PRUNED, OPEN]
SECOND = ("--unrolled --warmup_dec_epoch 0 --decision_freq 9", 2, (0,))


class Small:
    """A search on random images of 8x8 pixels: three steps an epoch, of 8, 8 and 5 at first.

    Of the last batch the third of three processes gets nothing.
    """

    def __init__(self, flags: str) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (42, 1, 8, 8), dtype=torch.uint8, generator=generator)
        labels = torch.arange(42) % 7
        self.train, self.valid = Split(images[:21], labels[:21]), Split(images[21:], labels[21:])
        self.args = parse(search.build_parser(), f"{FLAGS} {flags}".split())
        self.run = Run(Path(), CPU, autocast(CPU, "off"))
        torch.manual_seed(2)
        self.state = SearchState(Network(4, 7, 3), self.args, self.run.precision)
        if self.args.unrolled:
            self.state.model.set_states(PARTLY, PARTLY)


def search_here(flags: str, epochs: int, out: Path) -> None:
    """The search as one of the processes, whose end goes to `out`; ends the process."""
    in_double()
    search.build_augmentation = lambda *_: AUGMENTATION
    with process_group():
        small = Small(flags)
        small.args.epochs = epochs
        search.search(
            small.state, small.train, small.valid, small.args, small.run, save=lambda: None
        )
        progress = small.state.progress
        end = {
            "state_dict": small.state.model.state_dict(),
            "decisions": progress.decisions,
            "accuracies": [record["valid_accuracy"] for record in progress.history],
        }
        torch.save(end, out.with_suffix(f".{rank()}"))
    sys.exit(0)


def search_oracle(flags: str, epochs: int, decides: tuple[int, ...], count: int) -> dict[str, Any]:
    """What `search_here` ends with by `count` processes."""
    small = Small(flags)
    model, architect, sgd = small.state.model, small.state.architect, small.state.optimizer
    past: dict[str, list] = {"normal": [], "reduce": []}
    decided, accuracies, size = [], [], 8
    for epoch in range(epochs):
        model.train()
        sgd.param_groups[0]["lr"] = cosine(epoch / epochs, 0.025, 0.001)
        drawn = {"batch_size": size, "seed": 2, "epoch": epoch, "augmentation": AUGMENTATION}
        others = alphas_batches(small.valid, **drawn, step=0)
        for (x, y), (v, w) in zip(training_batches(small.train, **drawn), others, strict=False):
            rows = [slice(*part) for part in parts(len(x), count)]
            # A process without images for the weights takes those of the first.
            taken = [*rows, *[rows[0]] * (count - len(rows))]
            alphas = [alpha for alpha in model.arch_parameters() if alpha.requires_grad]
            sums = [torch.zeros_like(alpha) for alpha in alphas]
            for place, (begin, end) in zip(taken, parts(len(v), count), strict=False):
                valid = (v[begin:end], w[begin:end])
                if small.args.unrolled:
                    found = architect.second_order_gradient((x[place], y[place]), valid, sgd)
                else:
                    found = architect.first_order_gradient(valid)
                for total, gradient in zip(sums, found, strict=True):
                    total += gradient * ((end - begin) / len(v))
            for alpha, total in zip(alphas, sums, strict=True):
                alpha.grad = total
            architect.optimizer.step()
            architect.optimizer.zero_grad()
            losses = [
                ((r.stop - r.start) / len(x),
                 lambda r=r, x=x, y=y: F.cross_entropy(model(x[r]).float(), y[r]))
                for r in rows
            ]  # fmt: skip
            with frozen(model.arch_parameters()):
                accumulate(model, losses)
            torch.nn.utils.clip_grad_norm_(model.weight_parameters(), 5.0)
            sgd.step()
        model.eval()
        with torch.no_grad():
            right = model(augment.to_float(small.valid.images)).argmax(1) == small.valid.labels
        accuracies.append(100 * right.double().mean().item())
        scores = score_cells(model, past, use_history=True)
        if epoch in decides:
            decided += [{"epoch": epoch + 1, **each} for each in decide(model, scores)]
            size += 4
        for cell in past:
            past[cell] = [*past[cell], scores[cell].probs][-4:]
    return {"state_dict": model.state_dict(), "decisions": decided, "accuracies": accuracies}


@pytest.mark.parametrize("case, count", [(FIRST, 2), (SECOND, 3)])
def test_processes_search_as_oracle(case, count, double, tmp_path):
    flags, epochs, _ = case
    here = partial(search_here, flags, epochs, tmp_path / "end")
    finish(["search.py"], count, tmp_path, before=here)
    ends = [torch.load(tmp_path / f"end.{k}", weights_only=True) for k in range(count)]
    assert all(same(end, ends[0]) for end in ends), "all processes are alike, bit for bit"
    expected = search_oracle(*case, count)
    assert ends[0]["decisions"] == expected["decisions"] != []
    assert ends[0]["accuracies"] == pytest.approx(expected["accuracies"], abs=1e-9)
    assert_close(ends[0]["state_dict"], expected["state_dict"])


def test_search_by_two_processes_resumes_as_one(data, tmp_path):
    words = words_of(SEARCH, data, tmp_path, "--epochs", "2", "--limit_batches", "2")
    stopped = partial(raise_after, "epoch 2 step 1/", signal.SIGINT)
    children = start([*words, "--save", "run"], 2, tmp_path, before=stopped)
    assert [child.wait(LIMIT) for child in children] == [130, 130]
    state = read(tmp_path / "run")["state"]
    assert (state["epoch"], state["step"]) == (1, 1)
    alone = Child([*words, "--resume", "run"], tmp_path / "alone.log")
    assert alone.wait(LIMIT) == 0, alone.printed()
    assert (tmp_path / "run" / "genotype.txt").is_file()
