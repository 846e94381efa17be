"""The loop: schedules, what a step does, what an evaluation sees, how a run is stopped."""

from __future__ import annotations

import math
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fer2013_files import logged
from torch import Tensor, nn
from torch.nn import functional as F

import train_FER2013
from common import parsing
from data.augment import Augmentation
from data.batches import training_batches
from data.halves import alphas_batches, search_halves
from data.types import Split
from engine import (
    TrainState,
    build_augmentation,
    evaluate,
    fit,
    network_predictor,
    require_finite,
    train_one_epoch,
)
from recipe.compiling import compiled
from recipe.schedules import DropPath, cosine, learning_rate_at, linear_ramp
from runtime.errors import UserError
from runtime.run import Run, autocast, best_epoch, first_epoch_reaching
from runtime.stop import GracefulStop, Interrupted, stop_on_signals
from utils import AverageMeter

CPU = torch.device("cpu")
FLAGS = "--epochs 3 --batch_size 8 --learning_rate 0.1 --weight_decay 0 --report_freq 100"


class Small(nn.Module):
    """What the loop asks of a network, with a batch norm whose statistics move."""

    auxiliary = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.drop_path_prob = 0.0
        self.norm = nn.BatchNorm1d(16)
        self.classifier = nn.Linear(16, 7)
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.norm(F.adaptive_avg_pool2d(x, 4).flatten(1))
        return self.classifier(x), self.head(x) if self.training else None


def parse(words: str, module=train_FER2013) -> Namespace:
    return parsing.parse(module.build_parser(), words.split())


def new_run() -> Run:
    return Run(Path("nowhere"), CPU, autocast(CPU, "off"))


def new_state(words: str = "", model: nn.Module | None = None) -> tuple[TrainState, Namespace]:
    args = parse(f"{FLAGS} {words}")
    drop_path = DropPath(0, args.epochs, args.drop_path_prob)
    return TrainState(model or Small(), args, drop_path), args


def split(count: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 48, 48), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 7)


def batches() -> list[tuple[Tensor, Tensor]]:
    options = {"batch_size": 8, "augmentation": Augmentation(), "seed": 0, "epoch": 0}
    return list(training_batches(split(20), **options))


def step(
    model: nn.Module, seen: list[tuple[Tensor, Tensor]], words: str = "", **options: Any
) -> AverageMeter:
    """Train on the batches by plain SGD, at a rate of 0.5 on the first of them."""
    train, args = new_state(f"--momentum 0 --learning_rate 0.5 --grad_clip 100 {words}", model)
    steps = len(seen)
    return train_one_epoch(train, seen, args, new_run(), steps=steps, forward=model, **options)


def fit_small(
    words: str = "",
    model: nn.Module | None = None,
    save: Callable[[], None] = lambda: None,
    **options: Any,
) -> TrainState:
    train, args = new_state(words, model)
    evaluations = {"PublicTest": split(9, 1), "PrivateTest": split(10, 2)}
    fit(train, split(20), evaluations, args, new_run(), save=save, **options)
    return train


# --- schedules


def test_cosine_and_ramp():
    found = [cosine(share, 0.025, 0.001) for share in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([0.025, 0.013, 0.001])
    assert [linear_ramp(epoch, 4, 0.2) for epoch in (0, 1, 4, 9)] == [0, 0.05, 0.2, 0.2]
    assert DropPath(3, 10, 0.2).at(2) == pytest.approx(0.1)


def test_learning_rate_warms_up_from_a_25th_then_falls():
    args = parse("--epochs 10 --learning_rate 0.1 --warmup_epochs 3")
    expected = {0: 0.1 / 25, 1.5: (0.1 / 25 + 0.1) / 2, 3: 0.1, 6.5: 0.05, 10: 0.0}
    for epoch, rate in expected.items():
        assert learning_rate_at(epoch, args) == pytest.approx(rate)
    args.warmup_epochs = 0
    for epoch in (0, 0.5, 7, 9.99):
        assert learning_rate_at(epoch, args) == cosine(epoch / 10, 0.1)


def test_last_batch_of_one_image_is_refused_where_the_auxiliary_head_has_one_pixel():
    with pytest.raises(UserError, match="--batch_size 19: leaves one of 20 images"):
        fit_small("--batch_size 19 --epochs 1 --sizes 40 --size_epochs 1")
    fit_small("--batch_size 18 --epochs 1 --sizes 40 --size_epochs 1")
    train, args = new_state("--batch_size 19 --epochs 1 --sizes 40 --size_epochs 1")
    by_subject = replace(split(20), groups=torch.arange(20) % 2)  # batches of ten
    fit(train, by_subject, {}, args, new_run(), save=lambda: None)


def test_fit_changes_the_learning_rate_every_step():
    train, args = new_state("--warmup_epochs 2")
    rates = []
    train.optimizer.register_step_pre_hook(lambda sgd, *_: rates.append(sgd.param_groups[0]["lr"]))
    fit(train, split(20), {}, args, new_run(), save=lambda: None)
    assert rates == pytest.approx([learning_rate_at(step / 3, args) for step in range(9)])
    assert min(rates) > 0
    assert [record["lr"] for record in train.progress.history] == pytest.approx(rates[::3])


# --- a step


def test_step_is_sgd_on_the_clipped_gradient():
    model, plain = Small(), Small()
    images, labels = batches()[0]
    words = "--momentum 0.9 --weight_decay 0.1 --learning_rate 0.25 --grad_clip 0.01"
    meter = step(model, [(images, labels)], words)
    logits, auxiliary = plain(images)
    loss = F.cross_entropy(logits, labels)
    total = loss + 0.4 * F.cross_entropy(auxiliary, labels)
    gradients = torch.autograd.grad(total, list(plain.parameters()))
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert norm > 0.01
    pairs = zip(model.parameters(), plain.parameters(), gradients, strict=True)
    for found, weight, gradient in pairs:
        expected = weight - 0.25 * (gradient * 0.01 / (norm + 1e-6) + 0.1 * weight)
        torch.testing.assert_close(found, expected)
    right = (logits.argmax(1) == labels).float().mean().item()
    assert meter.read() == (pytest.approx(loss.item()), pytest.approx(100 * right))


def test_flags_reach_optimizer_and_augmentation():
    found = new_state("--nesterov --momentum 0.8 --weight_decay 0.01")[0].optimizer.defaults
    names = ("lr", "momentum", "weight_decay", "nesterov")
    assert [found[name] for name in names] == [0.1, 0.8, 0.01, True]
    args = parse("--affine 0.1 --erasing 0.3 --cutout --cutout_length 5")
    expected = Augmentation(jitter=0.5, cutout=5, affine=0.1, erasing=0.3)
    assert build_augmentation(args, jitter=0.5) == expected
    assert build_augmentation(parse("")) == Augmentation()


def test_relabelling_changes_the_loss_not_the_accuracy():
    batch = (batches()[0][0], torch.zeros(8, dtype=torch.int64))
    seen = []

    def relabel(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append((logits.requires_grad, labels.clone()))
        return torch.full_like(labels, 3)

    before, after = Small(), Small()
    meters = step(before, [batch]), step(after, [batch], relabelling=relabel)
    accuracies = [meter.read()[1] for meter in meters]
    ((requires_grad, labels),) = seen
    assert not requires_grad
    assert labels.equal(batch[1])
    assert accuracies[0] == accuracies[1]
    assert after.classifier.bias[3] > before.classifier.bias[3]


def test_only_whole_batches_are_compiled(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        torch, "compile", lambda module, **_: lambda x: sizes.append(len(x)) or module(x)
    )
    model, images = Small(), torch.rand(8, 1, 44, 44)
    forward = compiled(model, 8, CPU)
    for batch in (images, images, images[:3]):
        torch.testing.assert_close(forward(batch), model(batch))
    assert sizes == [8, 8]
    fit_small("--epochs 1")
    assert sizes == [8, 8]
    fit_small("--epochs 1 --compile")
    assert sizes == [8, 8, 8, 8]


def test_training_goes_on_uncompiled(monkeypatch):
    def broken(images):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda module, **_: broken)
    model, images = Small(), torch.rand(8, 1, 44, 44)
    forward = compiled(model, 8, CPU)
    with logged() as lines:
        for _ in range(3):
            torch.testing.assert_close(forward(images), model(images))
    assert lines == [
        "--compile: not possible here, going on without (no C++ compiler and a long story)"
    ]


# --- evaluation


def test_evaluation_sees_every_image_whole_and_in_order():
    data, sizes, model = split(10), [], Small()
    predictor = network_predictor(model)
    assert model.training, "a copy evaluates"

    def predict(images: Tensor) -> Tensor:
        sizes.append(tuple(images.shape))
        return predictor(images)

    scores = evaluate(predict, data, 4, new_run())
    assert sizes == [(4, 1, 48, 48), (4, 1, 48, 48), (2, 1, 48, 48)]
    logits = model.eval()(data.images.float() / 255)[0]
    torch.testing.assert_close(scores.logits, logits.detach())
    assert scores.loss == pytest.approx(F.cross_entropy(logits, data.labels).item())
    right = (logits.argmax(1) == data.labels).sum().item()
    assert scores.accuracy == pytest.approx(100 * right / 10)


# --- fit


def test_fit_saves_at_the_start_and_every_epoch():
    train, args = new_state("--drop_path_prob 0.3")
    saved = []

    def save() -> None:
        progress = train.progress
        saved.append((progress.epoch, progress.step, len(progress.history)))

    fit(train, split(20), {"PublicTest": split(9, 1)}, args, new_run(), save=save)
    assert saved == [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3)]
    assert train.model.drop_path_prob == pytest.approx(0.2)
    assert {"train_loss", "PublicTest_accuracy"} <= train.progress.history[-1].keys()


class StopAt(GracefulStop):
    """Stops when it is asked for the reason once more than `looks` times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def requested(self) -> str | None:
        self.looks -= 1
        return "SIGTERM" if self.looks < 0 else None


def test_resume_at_any_step_is_bit_exact():
    def ended(looks: int = 1000, found: dict | None = None) -> TrainState:
        train, args = new_state("--epochs 2 --limit_batches 2 --ema 0.5")
        if found is not None:
            train.load_state_dict(found, "checkpoint.pt")
        run = new_run()
        run.stop = StopAt(looks)
        with suppress(Interrupted):
            fit(train, split(20), {"PublicTest": split(9, 1)}, args, run, save=lambda: None)
        return train

    whole, places = ended(), set()
    for looks in range(12):
        train = ended(looks)
        places.add((train.progress.epoch, train.progress.step))
        again = ended(found=train.state_dict())
        for part in ("model", "ema"):
            states = (getattr(each, part).state_dict() for each in (whole, again))
            assert all(a.equal(b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert {(0, 1), (0, 2), (1, 1), (1, 2)} <= places


def test_a_loss_that_is_not_finite_ends_the_fit():
    model, saved = Small(), []
    with torch.no_grad():
        model.classifier.weight.fill_(math.inf)
    with pytest.raises(UserError, match="not finite; the last checkpoint is kept"):
        fit_small(model=model, save=lambda: saved.append(None))
    assert len(saved) == 1


def test_weights_and_statistics_must_be_finite():
    require_finite(Small(), 1.0, "here")
    for name in ("head.bias", "norm.running_var"):
        model = Small()
        model.state_dict()[name][1] = math.inf
        with pytest.raises(UserError, match="here"):
            require_finite(model, 1.0, "here")


def test_signals_are_noticed_and_handlers_restored():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert stop.requested() is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested() == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is before
    assert GracefulStop(minutes=1e-9).requested() == "time limit"
    assert GracefulStop(minutes=60).requested() is None


@pytest.mark.parametrize("units", [True, False])
def test_amp_auto_is_bf16_on_a_cpu_with_units_for_it(units, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    low, full = torch.bfloat16, torch.float32
    for amp, dtype in (("auto", low if units else full), ("off", full), ("bf16", low)):
        with autocast(CPU, amp):
            assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == dtype


def test_records_of_epochs():
    history = [{"epoch": e, "a": a} for e, a in enumerate([80.0, 86.0, 84.0, 86.0, 91.0], 1)]
    assert best_epoch(history, "a") == 5
    assert best_epoch(history[:4], "a") == 2
    assert first_epoch_reaching(history, "a", 85.0) == 2
    assert first_epoch_reaching(history, "a", 95.0) is None
    with logged() as lines:
        new_run().log_epoch({"epoch": 2, "lr": 0.025, "batch_size": 8, "loss": 1.0}, 9)
    assert lines == ["epoch 2/9 lr 0.025 loss 1.0000"]


# --- the halves of a search


SPLITS = {"Training": split(20), "PublicTest": split(6, 1), "PrivateTest": split(4, 2)}


def test_halves_are_of_training_or_all_splits_in_order():
    halves = search_halves(SPLITS, protocol="clean", train_portion=0.6, seed=2)
    assert [len(half.labels) for half in halves] == [12, 8]
    together = torch.cat([half.images for half in halves]).flatten(1).tolist()
    assert sorted(together) == sorted(SPLITS["Training"].images.flatten(1).tolist())
    other = search_halves(SPLITS, protocol="clean", train_portion=0.6, seed=3)
    assert not other[0].images.equal(halves[0].images)
    halves = search_halves(SPLITS, protocol="paper", train_portion=0.5, seed=2)
    pool = torch.cat([each.images for each in SPLITS.values()])
    assert halves[0].images.equal(pool[:15])
    assert halves[1].images.equal(pool[15:])


def test_alphas_batches_are_endless_and_resume_anywhere():
    options = {"batch_size": 4, "augmentation": Augmentation(), "seed": 1, "epoch": 2}
    found = alphas_batches(split(10), **options, step=0)
    seen = [next(found) for _ in range(8)]
    assert [len(labels) for _, labels in seen] == [4, 4, 2, 4, 4, 2, 4, 4]
    assert not seen[0][0].equal(seen[3][0]), "another pass, another order"
    for step_number in range(7):
        images, labels = next(alphas_batches(split(10), **options, step=step_number))
        assert images.equal(seen[step_number][0])
        assert labels.equal(seen[step_number][1])
    assert not next(training_batches(split(10), **options))[0].equal(seen[0][0])
