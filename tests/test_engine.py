"""The loop: schedules, what a step does, what an evaluation sees, how a run is stopped."""

from __future__ import annotations

import logging
import math
import os
import signal
from contextlib import suppress
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.augment import Augmentation, training_batches
from data.fer2013 import Split
from data.halves import alphas_batches, search_halves
from engine import (
    TrainState,
    autocast,
    best_epoch,
    compiled,
    cosine,
    evaluate,
    first_epoch_reaching,
    fit,
    format_record,
    network_predictor,
    one_cycle,
    require_finite,
    train_one_epoch,
)
from utils import Interrupted, Stop, UserError, stop_on_signals

CPU = torch.device("cpu")


class Small(nn.Module):
    """Has what the loop asks of a network: (logits, auxiliary logits in training)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.drop_path_prob = 0.0
        self.linear = nn.Linear(16, 7)
        self.head = nn.Linear(16, 7)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)
        return self.linear(x), self.head(x) if self.training else None


def split(count: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 48, 48), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 7)


def fit_small(
    model, state, *, epochs=3, save=lambda _: None, stop=None, optimizer_class=torch.optim.SGD,
    **changes,
):  # fmt: skip
    optimizer = optimizer_class(model.parameters(), 0.1, momentum=0.9)
    options = {
        "batch_size": 8, "augmentation": Augmentation(), "learning_rate": 0.1,
        "drop_path_at": lambda epoch: 0.1 * epoch, "auxiliary_weight": 0.4, "grad_clip": 5.0,
        "seed": 0, "precision": autocast(CPU, "off"), "report_freq": 100, "limit_batches": None,
        "warmup_epochs": 0, "compile_forward": False,
    }  # fmt: skip
    fit(
        model, optimizer, split(20), {"PublicTest": split(9, 1), "PrivateTest": split(10, 2)},
        state=state, epochs=epochs, save=save, stop=stop or Stop(), **{**options, **changes},
    )  # fmt: skip


def test_the_cosine_starts_high_ends_low_and_is_half_way_half_way():
    assert cosine(0.0, 0.025, 0.001) == 0.025
    assert cosine(0.5, 0.025, 0.001) == pytest.approx(0.013)
    assert cosine(1.0, 0.025, 0.001) == pytest.approx(0.001)


def test_a_warm_up_rises_from_a_25th_and_the_cosine_falls_over_the_rest():
    rate = partial(one_cycle, epochs=10, highest=0.1, warmup_epochs=3)
    assert rate(0) == pytest.approx(0.1 / 25)
    assert rate(1.5) == pytest.approx((0.1 / 25 + 0.1) / 2)
    assert rate(3) == 0.1
    assert rate(6.5) == pytest.approx(0.05)
    assert rate(10) == pytest.approx(0.0)
    steps = [rate(step / 100) for step in range(1001)]
    assert steps[:301] == sorted(steps[:301])
    assert steps[300:] == sorted(steps[300:], reverse=True)


def test_without_a_warm_up_the_rate_is_the_published_cosine():
    for epoch in (0, 0.5, 7, 9.99):
        assert one_cycle(epoch, epochs=10, highest=0.025) == cosine(epoch / 10, 0.025)


def test_a_fit_warms_up_step_by_step():
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    fit_small(Small(), TrainState(), epochs=3, warmup_epochs=2, optimizer_class=Watched)
    expected = [one_cycle(step / 3, epochs=3, highest=0.1, warmup_epochs=2) for step in range(9)]
    assert rates == pytest.approx(expected)


def test_no_epoch_trains_at_a_learning_rate_of_zero():
    state = TrainState()
    fit_small(Small(), state, epochs=2)
    rates = [record["lr"] for record in state.history]
    assert rates == [0.1, pytest.approx(0.05)]
    model = Small()
    before = model.linear.weight.clone()
    fit_small(model, TrainState(), epochs=1)
    assert not model.linear.weight.equal(before)


def test_a_step_is_sgd_on_the_clipped_gradient_of_both_losses():
    model, plain = Small(), Small()
    data = split(8)
    batch = next(training_batches(data, batch_size=8, augmentation=Augmentation(), seed=0, epoch=0))
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9, weight_decay=0.1)
    state = TrainState()
    meter = train_one_epoch(
        model, [batch], optimizer, forward=model, state=state, steps=1, seed=0,
        learning_rate_at=lambda _: 0.25, auxiliary_weight=0.4, grad_clip=0.01,
        precision=autocast(CPU, "off"), report_freq=10, stop=Stop(),
    )  # fmt: skip
    images, labels = batch
    logits, auxiliary = plain(images)
    loss = F.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(
        loss + 0.4 * F.cross_entropy(auxiliary, labels), list(plain.parameters())
    )
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert norm > 0.01
    for found, weight, gradient in zip(
        model.parameters(), plain.parameters(), gradients, strict=True
    ):
        expected = weight - 0.25 * (gradient * 0.01 / (norm + 1e-6) + 0.1 * weight)
        torch.testing.assert_close(found, expected)
    assert meter.read() == (
        pytest.approx(loss.item()), pytest.approx(100 * (logits.argmax(1) == labels).float().mean())
    )  # fmt: skip
    assert state.step == 1


def test_compiled_runs_whole_batches_fast_and_the_last_one_as_ever(monkeypatch):
    model, calls = Small(), []
    monkeypatch.setattr(
        torch, "compile", lambda module, dynamic: lambda x: calls.append(len(x)) or module(x)
    )
    forward = compiled(model, 8)
    for count in (8, 8, 3):
        images = torch.rand(count, 1, 44, 44)
        torch.testing.assert_close(forward(images), model(images))
    assert calls == [8, 8]


def test_where_nothing_compiles_a_warning_says_so_once_and_training_goes_on(monkeypatch):
    def broken(images):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda module, dynamic: broken)
    # Whatever handlers an earlier test has left, this one alone is asked.
    warnings, handler = [], logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    monkeypatch.setattr(logging.getLogger("auto_fernet"), "handlers", [handler])
    model, images = Small(), torch.rand(8, 1, 44, 44)
    forward = compiled(model, 8)
    for _ in range(3):
        torch.testing.assert_close(forward(images), model(images))
    assert warnings == [
        "--compile: not possible here, going on without (no C++ compiler and a long story)"
    ]


def test_a_fit_trains_by_the_compiled_forward_where_it_is_asked_to(monkeypatch):
    calls = []
    monkeypatch.setattr(
        torch, "compile", lambda module, dynamic: lambda x: calls.append(len(x)) or module(x)
    )
    for asked in (False, True):
        fit_small(Small(), TrainState(), epochs=1, compile_forward=asked)
    assert calls == [8, 8]


def test_relabelling_changes_the_loss_and_not_the_accuracy():
    batch = (torch.rand(8, 1, 44, 44), torch.zeros(8, dtype=torch.int64))
    seen = []

    def relabel(logits, labels):
        seen.append((logits.requires_grad, labels.clone()))
        return torch.full_like(labels, 3)

    meters, models = [], []
    for hook in (None, relabel):
        model = Small()
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        meters.append(
            train_one_epoch(
                model, [batch], optimizer, forward=model, state=TrainState(), steps=1, seed=0,
                learning_rate_at=lambda _: 0.5, auxiliary_weight=0.4, grad_clip=5.0,
                precision=autocast(CPU, "off"), report_freq=10, stop=Stop(), relabel=hook,
            )
        )  # fmt: skip
        models.append(model)
    assert seen[0][0] is False
    assert seen[0][1].equal(batch[1])
    assert meters[0].read()[1] == meters[1].read()[1]
    assert models[1].linear.bias[3] > models[0].linear.bias[3]


def test_an_evaluation_sees_every_image_whole_in_order_in_evaluation_mode():
    data, sizes = split(10), []
    model = Small()
    predictor = network_predictor(model)
    assert model.training, "a copy evaluates"

    def predict(images):
        sizes.append(tuple(images.shape))
        return predictor(images)

    scores = evaluate(predict, data, batch_size=4, precision=autocast(CPU, "off"), stop=Stop())
    assert sizes == [(4, 1, 48, 48), (4, 1, 48, 48), (2, 1, 48, 48)]
    logits = model.eval()(data.images.float() / 255)[0]
    torch.testing.assert_close(scores.logits, logits)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, data.labels).item())
    right = (logits.argmax(1) == data.labels).sum().item()
    assert scores.accuracy == pytest.approx(100 * right / 10)


def test_a_fit_saves_at_the_start_and_every_epoch_with_its_record():
    saved, model, drops = [], Small(), []
    fit_small(
        model,
        TrainState(),
        save=lambda state: saved.append((state.epoch, state.step, len(state.history))),
        drop_path_at=lambda epoch: drops.append(epoch) or 0.1 * epoch,
    )
    assert saved == [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3)]
    assert drops == [0, 1, 2]
    assert model.drop_path_prob == pytest.approx(0.2)


def test_a_fit_stopped_at_any_step_goes_on_to_the_same_weights():
    class StopAt(Stop):
        def __init__(self, looks):
            super().__init__()
            self.looks = looks

        @property
        def reason(self):
            self.looks -= 1
            return "SIGTERM" if self.looks < 0 else None

    # Without momentum a network is all the state there is.
    def plain(model, state, stop=None):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        fit(
            model, optimizer, split(20), {"PublicTest": split(9, 1)}, state=state, epochs=2,
            batch_size=8, augmentation=Augmentation(), learning_rate=0.1,
            drop_path_at=lambda _: 0.0, auxiliary_weight=0.4, grad_clip=5.0, seed=0,
            precision=autocast(CPU, "off"), report_freq=100, limit_batches=2,
            warmup_epochs=0, compile_forward=False, save=lambda _: None, stop=stop or Stop(),
        )  # fmt: skip

    whole, expected = Small(), TrainState()
    plain(whole, expected)
    places = set()
    for looks in range(12):
        model, state = Small(), TrainState()
        with suppress(Interrupted):
            plain(model, state, StopAt(looks))
        places.add((state.epoch, state.step))
        plain(model, TrainState(**state.to_dict()))
        assert all(a.equal(b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))
    assert {(0, 1), (0, 2), (1, 1), (1, 2)} <= places


def test_a_loss_that_is_not_finite_ends_the_fit_before_anything_more_is_saved():
    model, saved = Small(), []
    with torch.no_grad():
        model.linear.weight.fill_(float("inf"))
    with pytest.raises(UserError, match="not finite; the last checkpoint is kept"):
        fit_small(model, TrainState(), save=lambda state: saved.append((state.epoch, state.step)))
    assert saved == [(0, 0)]
    fine = Small()
    require_finite(fine, 1.0, "here")
    with torch.no_grad():
        fine.head.bias[2] = float("nan")
    with pytest.raises(UserError, match="here"):
        require_finite(fine, 1.0, "here")
    # A checkpoint with statistics that overflowed could not be resumed.
    norm = torch.nn.BatchNorm2d(2)
    require_finite(norm, 1.0, "here")
    norm.running_var[1] = float("inf")
    with pytest.raises(UserError, match="here"):
        require_finite(norm, 1.0, "here")


def test_signals_are_noticed_and_handlers_put_back():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert stop.reason is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is before
    assert Stop(minutes=1e-9).reason == "time limit"
    assert Stop(minutes=60).reason is None


def test_amp_auto_is_full_precision_on_a_cpu():
    for amp, dtype in (("auto", torch.float32), ("off", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, amp):
            assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == dtype


def test_the_first_of_equal_epochs_is_the_best_and_milestones_are_reached_once():
    history = [{"epoch": e, "a": a} for e, a in enumerate([80.0, 86.0, 84.0, 86.0, 91.0], 1)]
    assert best_epoch(history, "a") == 5
    assert best_epoch(history[:4], "a") == 2
    assert first_epoch_reaching(history, "a", 85.0) == 2
    assert first_epoch_reaching(history, "a", 95.0) is None
    assert format_record({"epoch": 2, "lr": 0.025, "batch_size": 8, "loss": 1.0}, 9) == (
        "epoch 2/9 lr 0.025 loss 1.0000"
    )


def three_splits() -> dict[str, Split]:
    return {"Training": split(20), "PublicTest": split(6, 1), "PrivateTest": split(4, 2)}


def test_the_clean_halves_part_training_alone():
    splits = three_splits()
    halves = search_halves(splits, protocol="clean", train_portion=0.6, seed=2)
    assert [len(half.labels) for half in halves] == [12, 8]
    together = torch.cat([half.images for half in halves]).flatten(1).tolist()
    assert sorted(together) == sorted(splits["Training"].images.flatten(1).tolist())
    other = search_halves(splits, protocol="clean", train_portion=0.6, seed=3)
    assert not other[0].images.equal(halves[0].images)


def test_the_papers_halves_part_all_splits_in_file_order():
    splits = three_splits()
    halves = search_halves(splits, protocol="paper", train_portion=0.5, seed=2)
    pool = torch.cat([splits[name].images for name in ("Training", "PublicTest", "PrivateTest")])
    assert halves[0].images.equal(pool[:15])
    assert halves[1].images.equal(pool[15:])


def test_halves_that_would_be_empty_are_refused():
    with pytest.raises(UserError, match=r"--train_portion 0\.01"):
        search_halves(three_splits(), protocol="clean", train_portion=0.01, seed=0)


def test_the_alphas_batches_never_end_and_resume_anywhere():
    options = {"batch_size": 4, "augmentation": Augmentation(), "seed": 1, "epoch": 2}
    batches = alphas_batches(split(10), **options, step=0)
    seen = [next(batches) for _ in range(8)]
    assert [len(labels) for _, labels in seen] == [4, 4, 2, 4, 4, 2, 4, 4]
    assert not seen[0][0].equal(seen[3][0]), "another pass, another order"
    for step in range(7):
        images, labels = next(alphas_batches(split(10), **options, step=step))
        assert images.equal(seen[step][0])
        assert labels.equal(seen[step][1])
    weights = training_batches(split(10), **options)
    assert not next(weights)[0].equal(seen[0][0])
