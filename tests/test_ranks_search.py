"""Several processes that search, against the oracle."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_runs import (
    accumulate,
    assert_close,
    finish,
    in_double,
    parts,
    start,
    words_of,
)
from runs import SEARCH, read, same
from torch.nn import functional as F

import architect
from architect import Batch
from benchmarks.runs import Child
from common import ranks
from data import augment
from data.augment import Augmentation, training_batches
from data.fer2013 import Split
from data.halves import alphas_batches
from engine import autocast, cosine
from model_search import Network
from search import SearchState, search
from utils import Stop

FULL = autocast(torch.device("cpu"), "off")


@dataclass
class Small:
    """A search on random images of 8x8 pixels, in float64: 21 steps, of 8, 8 and 5 images first.

    Of the last batches of an epoch the third of three ranks gets nothing.
    """

    epochs: int = 9
    decides: tuple[int, ...] = (2, 5)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (42, 1, 8, 8), dtype=torch.uint8, generator=generator)
        labels = torch.arange(42) % 7
        self.train, self.valid = Split(images[:21], labels[:21]), Split(images[21:], labels[21:])
        torch.manual_seed(2)
        self.model = Network(C=2, num_classes=7, layers=3)
        self.held = self.model.weight_parameters()
        self.sgd = torch.optim.SGD(self.held, 0.025, momentum=0.9, weight_decay=3e-4)
        self.adam = torch.optim.Adam(
            self.model.arch_parameters(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3
        )
        self.augmentation = Augmentation(crop=8, jitter=0.5)

    def learning_rate_at(self, epoch: int) -> float:
        return cosine(epoch / self.epochs, 0.025, 0.001)

    def first_order(self, _on: Batch, after: Batch) -> list[torch.Tensor]:
        return architect.first_order_gradient(
            self.model, after, penalty=self.penalty, precision=FULL
        )

    def second_order(self, on: Batch, after: Batch) -> list[torch.Tensor]:
        return architect.second_order_gradient(
            self.model,
            on,
            after,
            penalty=self.penalty,
            precision=FULL,
            learning_rate=self.sgd.param_groups[0]["lr"],
            momentum=0.9,
            weight_decay=3e-4,
            momentum_buffers=[self.sgd.state.get(w, {}).get("momentum_buffer") for w in self.held],
        )

    def penalty(self) -> torch.Tensor:
        edges = architect.penalised_edges(self.model.normal_selected_idxs, first_only=False)
        return architect.complexity(self.model.alphas_normal, edges)


FIRST, SECOND = Small, partial(Small, epochs=2, decides=(0,))  # SECOND: six steps


def search_here(order: str, out: Path) -> None:
    """The search as one of the ranks, whose end goes to `out`; ends the process."""
    in_double()
    with ranks.group():
        small = FIRST() if order == "first_order" else SECOND()
        state = SearchState()
        search(
            small.model,
            small.sgd,
            small.adam,
            small.train,
            small.valid,
            alphas_gradient=getattr(small, order),
            state=state,
            epochs=small.epochs,
            batch_size=8,
            batch_increase=4,
            augmentation=small.augmentation,
            learning_rate_at=small.learning_rate_at,
            decides_at=lambda epoch: epoch in small.decides,
            use_history=True,
            history_size=4,
            post_val=False,
            grad_clip=5.0,
            seed=2,
            precision=FULL,
            report_freq=100,
            limit_batches=None,
            save=lambda: None,
            stop=Stop(),
        )
        torch.save(
            {"state_dict": small.model.state_dict(), "decisions": state.decisions,
             "accuracies": [record["valid_accuracy"] for record in state.history]},
            out.with_suffix(f".{ranks.rank()}"),
        )  # fmt: skip
    sys.exit(0)


def search_oracle(order: str, count: int) -> dict[str, Any]:
    """What `search_here` ends with, from one process that takes the shares of `count` ranks."""
    small = FIRST() if order == "first_order" else SECOND()
    model, gradient = small.model, getattr(small, order)
    past: dict[str, list] = {"normal": [], "reduce": []}
    decided, accuracies, size = [], [], 8
    for epoch in range(small.epochs):
        model.train()
        small.sgd.param_groups[0]["lr"] = small.learning_rate_at(epoch)
        drawn = {
            "batch_size": size, "seed": 2, "epoch": epoch, "augmentation": small.augmentation
        }  # fmt: skip
        others = alphas_batches(small.valid, **drawn, step=0)
        for (x, y), (v, w) in zip(training_batches(small.train, **drawn), others, strict=False):
            rows = [slice(*part) for part in parts(len(x), count)]
            # A rank without images for the weights takes those of the first.
            on = [*rows, *[rows[0]] * (count - len(rows))]
            sums: list[Any] = []
            for place, (begin, end) in zip(on, parts(len(v), count), strict=False):
                found = gradient((x[place], y[place]), (v[begin:end], w[begin:end]))
                found = [g * ((end - begin) / len(v)) for g in found]
                sums = [a + g for a, g in zip(sums or [0.0] * len(found), found, strict=True)]
            architect.step_alphas(model, small.adam, sums)
            losses = [
                ((r.stop - r.start) / len(x),
                 lambda r=r, x=x, y=y: F.cross_entropy(model(x[r]).float(), y[r]))
                for r in rows
            ]  # fmt: skip
            with architect.held(model.arch_parameters()):
                accumulate(model, losses)
            torch.nn.utils.clip_grad_norm_(small.held, 5.0)
            small.sgd.step()
        model.eval()
        with torch.no_grad():
            right = model(augment.to_float(small.valid.images)).argmax(1) == small.valid.labels
        accuracies.append(100 * right.double().mean().item())
        scores = architect.score_cells(model, past, use_history=True)
        if epoch in small.decides:
            decided += [{"epoch": epoch + 1, **each} for each in architect.decide(model, scores)]
            size += 4
        for cell in past:
            past[cell] = [*past[cell], scores[cell].probs][-4:]
    return {"state_dict": model.state_dict(), "decisions": decided, "accuracies": accuracies}


@pytest.mark.parametrize(
    "order, count", [("first_order", 2), ("first_order", 3), ("second_order", 3)]
)
def test_ranks_search_as_the_oracle_does_and_decide_the_same_edges(order, count, double, tmp_path):
    words = ["search.py"]
    finish(words, count, tmp_path, before=partial(search_here, order, tmp_path / "end"))
    ends = [torch.load(tmp_path / f"end.{k}", weights_only=True) for k in range(count)]
    assert all(same(end, ends[0]) for end in ends), "all ranks are alike, bit for bit"
    expected = search_oracle(order, count)
    assert ends[0]["decisions"] == expected["decisions"] != []
    assert ends[0]["accuracies"] == pytest.approx(expected["accuracies"], abs=1e-9)
    assert_close(ends[0]["state_dict"], expected["state_dict"])


def test_a_search_by_two_processes_goes_on_as_one(data, tmp_path):
    words = words_of(SEARCH, data, tmp_path, "--epochs", "2", "--limit_batches", "2")
    children = start([*words, "--save", "run"], 2, tmp_path)
    children[0].wait_for("epoch 2 step 1/")
    children[0].signal(signal.SIGINT)
    assert [child.wait() for child in children] == [130, 130]
    assert read(tmp_path / "run")["state"]["epoch"] == 1
    alone = Child([*words, "--resume", "run"], tmp_path / "alone.log")
    assert alone.wait() == 0, alone.printed()
    assert (tmp_path / "run" / "genotype.txt").is_file()
