"""The loops that the scripts share: train an epoch, evaluate, fit; and their schedules."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from common import ranks
from data.augment import (
    Augmentation,
    count_batches,
    evaluation_batches,
    resize,
    training_batches,
)
from data.fer2013 import Split
from data.mix import Mix
from data.views import over_views
from model import Network, folded
from utils import LOGGER_NAME, Interrupted, Meter, Stop, UserError, derive_seed

_log = logging.getLogger(LOGGER_NAME)

# The stream of the numbers drawn inside a step (drop-path); data.augment names the others.
STEP_STREAM = 2
# Where a warm-up starts, as a share of the highest rate (Smith and Topin's one cycle, 2018).
WARMUP_START = 1 / 25

Relabel = Callable[[Tensor, Tensor], Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def cosine(progress: float, first: float, last: float = 0.0) -> float:
    """Cosine annealing (Loshchilov and Hutter, 2017): `first` at progress 0, `last` at 1."""
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress))


def one_cycle(epoch: float, *, epochs: int, highest: float, warmup_epochs: int = 0) -> float:
    """Learning rate after `epoch` of `epochs` epochs, of which a part may have passed.

    It rises linearly from `WARMUP_START * highest` over `warmup_epochs`, then falls along a half
    cosine to 0 at `epochs`; without a warm-up it is the cosine alone.
    """
    if epoch < warmup_epochs:
        return highest * (WARMUP_START + (1.0 - WARMUP_START) * epoch / warmup_epochs)
    return cosine((epoch - warmup_epochs) / (epochs - warmup_epochs), highest)


def rising(epoch: int, epochs: int, highest: float) -> float:
    """Drop-path probability of an epoch: linear from 0 over `epochs` to `highest`, then that."""
    return highest * min(1.0, epoch / epochs)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The precision of forward passes: `amp` "bf16", "off", or "auto": bf16 on CUDA that has it."""
    if amp == "auto":
        enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
    else:
        enabled = amp == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def require_finite(model: nn.Module, loss: float, where: str) -> None:
    """Raise UserError when the loss or a weight is not finite: what is saved must be usable.

    Weights with what batch norms keep of activations, which overflows first.
    """
    # One question to the device, not one a tensor.
    tensors = (*model.parameters(), *model.buffers())
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
    if math.isfinite(loss) and bool(finite):
        return
    raise UserError(
        f"{where}: the loss is {loss:.4g} or a weight is not finite; the last checkpoint is kept, "
        "but would end alike: start again with a lower --learning_rate"
    )


@dataclass
class TrainState:
    """Where a run stands: finished epochs, steps and sums of the one under way, and its record.

    `extra` is the script's own: plain values of the epoch under way that it must not lose.
    """

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def end_epoch(self, record: dict[str, Any], started: float) -> None:
        """Keep the record of the epoch that `started`, by time.monotonic, and go on to the next."""
        record["seconds"] = self.seconds + time.monotonic() - started
        self.history.append(record)
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, [0.0, 0.0, 0.0], 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


def report_step(model: nn.Module, meter: Meter, state: TrainState, steps: int) -> None:
    """Log the epoch's figures so far; UserError when they are not finite. Waits for the device."""
    loss, accuracy = meter.read()
    title = f"epoch {state.epoch + 1}"
    _log.info("%s step %d/%d loss %.4f top-1 %.2f", title, state.step, steps, loss, accuracy)
    require_finite(model, loss, f"{title}, step {state.step}")


@dataclass(frozen=True)
class Scores:
    """An evaluated split: logits float32 (N, K) and labels int64 (N,) on the CPU."""

    logits: Tensor
    labels: Tensor

    @property
    def loss(self) -> float:
        """Mean cross entropy."""
        return F.cross_entropy(self.logits.double(), self.labels).item()

    @property
    def predictions(self) -> Tensor:
        """int64 (N,): the most likely class of each image."""
        return self.logits.argmax(dim=1)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100.0 * (self.predictions == self.labels).double().mean().item()


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    split: Split,
    *,
    batch_size: int,
    precision: torch.autocast,
    stop: Stop,
    title: str = "evaluation",
) -> Scores:
    """Logits of every image of `split`, whole and unaugmented, in order.

    `predict` maps float32 (B, 1, 48, 48) in [0, 1] to logits (B, K) and is in evaluation mode.
    Each rank predicts its share of the images, and all get the logits of all. Raises Interrupted
    when `stop` says so.
    """
    logits = []
    share = ranks.own_share(len(split.images))
    batches = evaluation_batches(split.map(lambda t: t[share.rows]), batch_size=batch_size)
    total = count_batches(share.largest, batch_size)
    # As many rounds on every rank, as all ask `stop` together.
    rounds = islice(chain(batches, repeat(None)), total)
    for images in tqdm(rounds, title, total, leave=False, disable=ranks.hidden()):
        if images is not None:
            with precision:
                logits.append(predict(images).float())
        if stop.reason:
            raise Interrupted(stop)
    own = torch.cat(logits)[: share.count].cpu()
    return Scores(ranks.gather(own), split.labels.cpu())


def network_predictor(model: Network) -> Callable[[Tensor], Tensor]:
    """`model`, as it is now, as a function from images to the logits of evaluation mode."""
    network = folded(model)
    return lambda images: network(images)[0]


def final_weights(model: Network, average: AveragedModel | None) -> Network:
    """What is evaluated and saved: `average` of the weights of `model`, where there is one."""
    return model if average is None else average.module


def compiled(model: nn.Module, batch_size: int) -> Forward:
    """`model`, compiled by torch.compile for whole batches; the last one of an epoch runs as ever.

    Where there is no compiler for it, a warning says so and all batches run as ever.
    """
    fast: Forward | None = None
    usable = True

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        nonlocal fast, usable
        if not usable or len(images) != batch_size:
            return model(images)
        first = fast is None
        try:
            if first:
                fast = torch.compile(model, dynamic=False)
            return fast(images)
        except Exception as error:
            # Of a forward that ran once, only what the compiler says is no reason to stop.
            if not first and not type(error).__module__.startswith("torch._"):
                raise
            usable = False
            reason = " ".join(str(error).split())[:200]
            _log.warning("--compile: not possible here, going on without (%s)", reason)
            return model(images)

    return forward


def evaluate_splits(
    model: nn.Module,
    splits: Mapping[str, Split],
    *,
    batch_size: int,
    precision: torch.autocast,
    stop: Stop,
    tta: str = "none",
) -> dict[str, Scores]:
    """`evaluate` a network on each of `splits`, by name, averaged over the views of `tta`."""
    predict = over_views(network_predictor(model), tta)
    return {
        name: evaluate(
            predict,
            split,
            batch_size=batch_size,
            precision=precision,
            stop=stop,
            title=name,
        )
        for name, split in splits.items()
    }


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    forward: Forward,
    state: TrainState,
    steps: int,
    seed: int,
    learning_rate_at: Callable[[int], float],
    auxiliary_weight: float,
    grad_clip: float,
    precision: torch.autocast,
    report_freq: int,
    stop: Stop,
    criterion_for: Callable[[Tensor], Criterion] = lambda _images: F.cross_entropy,
    relabel: Relabel | None = None,
    mix: Mix | None = None,
    average: AveragedModel | None = None,
    size: int | None = None,
) -> Meter:
    """Train on the batches of epoch `state.epoch` from step `state.step` on, until `stop` says so.

    `batches` yields images (B, 1, H, W) and labels (B,); `forward` is `model`, or that compiled;
    `learning_rate_at` maps a step to its rate. `criterion_for(images)` maps logits and targets to
    the loss; `relabel(logits, labels)` may replace a step's labels, or `mix(images, labels)` both
    images and labels, by targets (B, K); `average` follows the weights. Where `size` is given, the
    network sees the images resized to it, `criterion_for` as they are. Each rank takes its share
    of every batch, and all step along the mean gradient of the batch. Advances `state.step` and
    `state.sums`, and returns the meter of the epoch, counted against the labels as given, of mixed
    images the class with the larger share.
    """
    model.train()
    device = next(model.parameters()).device
    meter = Meter(device, state.sums)
    title = f"epoch {state.epoch + 1}"
    first = state.step
    hidden = ranks.hidden()
    bar = tqdm(batches, title, steps, initial=first, leave=False, disable=hidden, unit="step")
    for step, (images, labels) in enumerate(bar, first):
        # Everything random inside a step hangs on its number, so that a run can resume anywhere.
        torch.manual_seed(derive_seed(seed, STEP_STREAM, state.epoch, step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step)
        targets = labels
        if mix is not None:
            images, targets = mix(images, labels)
            labels = targets.argmax(dim=1)
        # Only now: what an image is mixed with does not hang on the number of ranks.
        share = ranks.own_share(len(images))
        images, labels, targets = (each[share.rows] for each in (images, labels, targets))
        if ranks.rank() > 0:
            torch.manual_seed(derive_seed(seed, STEP_STREAM, state.epoch, step, ranks.rank()))
        with precision:
            criterion = criterion_for(images)
            logits, auxiliary_logits = forward(resize(images, size))
        if relabel is not None and share.count:
            targets = relabel(logits.detach().float(), labels)
        loss = total = criterion(logits.float(), targets)
        if auxiliary_logits is not None:
            total = loss + auxiliary_weight * criterion(auxiliary_logits.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        ranks.average_step(model, share.weight)
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        if average is not None:
            average.update_parameters(model)
        if share.count:
            meter.update(loss, logits, labels)
        state.step = step + 1
        if state.step % report_freq == 0:
            report_step(model, meter, state, steps)
        if stop.reason:
            break
    state.sums = meter.totals()
    return meter


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Split,
    evaluations: dict[str, Split],
    *,
    state: TrainState,
    epochs: int,
    batch_size: int,
    augmentation: Augmentation,
    learning_rate: float,
    warmup_epochs: int,
    drop_path_at: Callable[[int], float],
    auxiliary_weight: float,
    grad_clip: float,
    seed: int,
    precision: torch.autocast,
    report_freq: int,
    limit_batches: int | None,
    compile_forward: bool,
    save: Callable[[TrainState], None],
    stop: Stop,
    criterion_for: Callable[[Tensor], Criterion] = lambda _images: F.cross_entropy,
    relabel_at: Callable[[int], Relabel | None] = lambda _epoch: None,
    mix_at: Callable[[int], Mix | None] = lambda _epoch: None,
    average: AveragedModel | None = None,
    size_at: Callable[[int], int | None] = lambda _epoch: None,
) -> None:
    """Train from `state` to `epochs` epochs, evaluating every split of `evaluations` after each.

    The learning rate follows `one_cycle`, step by step, and would be zero one step after the last.
    An `average` is evaluated in the place of the model. In an epoch that is mixed no label is
    relabelled, as the logits of two faces say nothing of the label of one. `size_at(epoch)` is the
    side in pixels that images are resized to for training, None for no resizing.
    `save(state)` is called at the start, after every epoch, with its record last in
    `state.history`, and when `stop` interrupts one. Raises Interrupted when `stop` ended it before
    the last epoch, UserError when the loss is not finite.
    """
    steps = count_batches(len(training.images), batch_size, limit_batches)
    ranks.align(model)
    forward = compiled(model, ranks.own_share(batch_size).count) if compile_forward else model

    def learning_rate_at(epoch: float) -> float:
        return one_cycle(epoch, epochs=epochs, highest=learning_rate, warmup_epochs=warmup_epochs)

    # At once, so that a run killed in its first epoch can be resumed.
    if state.epoch == state.step == 0:
        save(state)
    while state.epoch < epochs:
        epoch, started = state.epoch, time.monotonic()
        model.drop_path_prob = drop_path_at(epoch)
        mix = mix_at(epoch)
        batches = training_batches(
            training,
            batch_size=batch_size,
            augmentation=augmentation,
            seed=seed,
            epoch=epoch,
            first_step=state.step,
            limit=limit_batches,
        )
        meter = train_one_epoch(
            model,
            batches,
            optimizer,
            forward=forward,
            state=state,
            steps=steps,
            seed=seed,
            learning_rate_at=lambda step, epoch=epoch: learning_rate_at(epoch + step / steps),
            auxiliary_weight=auxiliary_weight,
            grad_clip=grad_clip,
            precision=precision,
            report_freq=report_freq,
            stop=stop,
            criterion_for=criterion_for,
            relabel=relabel_at(epoch) if mix is None else None,
            mix=mix,
            average=average,
            size=size_at(epoch),
        )
        loss, accuracy = meter.read()
        require_finite(model, loss, f"epoch {epoch + 1}")
        record: dict[str, Any] = {
            "epoch": epoch + 1,
            "lr": learning_rate_at(epoch),
            "train_loss": loss,
            "train_accuracy": accuracy,
        }
        try:
            if stop.reason:
                raise Interrupted(stop)
            scored = evaluate_splits(
                final_weights(model, average),
                evaluations,
                batch_size=batch_size,
                precision=precision,
                stop=stop,
            )
            for name, scores in scored.items():
                record |= {f"{name}_loss": scores.loss, f"{name}_accuracy": scores.accuracy}
        except Interrupted:
            state.seconds += time.monotonic() - started
            save(state)
            raise
        state.end_epoch(record, started)
        _log.info("%s", format_record(record, epochs))
        save(state)


def best_epoch(history: list[dict[str, Any]], key: str) -> int:
    """The number of the first epoch whose `key` is highest."""
    return max(history, key=lambda record: (record[key], -record["epoch"]))["epoch"]


def first_epoch_reaching(history: list[dict[str, Any]], key: str, value: float) -> int | None:
    """The number of the first epoch whose `key` is at least `value`, or None."""
    return next((record["epoch"] for record in history if record[key] >= value), None)


def format_record(record: dict[str, Any], epochs: int) -> str:
    """A line for the log: `epoch 3/600 lr 0.02498 train_loss 1.2345 ... seconds 12.3`."""
    values = (
        f"{name} {value:.4g}" if name == "lr" else f"{name} {value:.4f}"
        for name, value in record.items()
        if name != "epoch" and isinstance(value, float)
    )
    return f"epoch {record['epoch']}/{epochs} " + " ".join(values)
