"""The loops that the scripts share: train an epoch, evaluate, fit; loss, EMA and schedules.

`args` is everywhere the parsed command line; the functions name the flags that they read.
"""

from __future__ import annotations

import logging
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from data.augment import Augmentation, resize
from data.batches import count_batches, evaluation_batches, training_batches
from data.mix import Mix, mixing
from data.relabel import Relabelling
from data.types import CLASSES, Split
from data.views import tta_predict
from model import Network, fuse_batch_norms
from runtime.errors import UserError, is_out_of_memory, reading
from runtime.logs import LOGGER_NAME
from runtime.processes import (
    average_gradients,
    broadcast_model,
    gather_rows,
    hide_progress,
    rank,
    shard,
)
from runtime.stop import GracefulStop, Interrupted, stop_on_signals
from utils import AverageMeter, derive_seed, load_state

_log = logging.getLogger(LOGGER_NAME)

# The random stream of a step (drop-path); data.augment names the others.
STEP_STREAM = 2
# The learning rate at the start of a warm-up, relative to the highest (Smith and Topin, 2018).
WARMUP_START = 1 / 25

Predict = Callable[[Tensor], Tensor]
Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]


# --- a run and its progress


@dataclass
class Run:
    """Where a run computes and writes, and what ends it early.

    `folder` is the run folder; `resumed` the content of its checkpoint at --resume, else None;
    `inputs` by flag the digest of what was read, which checkpoints keep.
    """

    folder: Path
    device: torch.device
    precision: torch.autocast
    stop: GracefulStop = field(default_factory=GracefulStop)
    resumed: dict[str, Any] | None = None
    inputs: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def interruptible(self, minutes: float | None = None, *, resumable: bool = True) -> Iterator:
        """Let SIGINT, SIGTERM and `minutes` end the block early, with everything saved."""
        with stop_on_signals(minutes, resumable=resumable) as self.stop:
            yield

    def check_stop(self) -> None:
        """Raise Interrupted when the run should end."""
        if self.stop.reason:
            raise Interrupted(self.stop)

    def log_epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        """Log the record of an epoch: `epoch 3/600 lr 0.02498 train_loss 1.2345 ... seconds 12.3`.

        Every loop calls it once per epoch; another logger is added here.
        """
        values = (
            f"{name} {value:.4g}" if name == "lr" else f"{name} {value:.4f}"
            for name, value in record.items()
            if name != "epoch" and isinstance(value, float)
        )
        _log.info("epoch %d/%d %s", record["epoch"], epochs, " ".join(values))


@dataclass
class Progress:
    """Where a run stands: finished epochs, steps and sums of the current one, and its history.

    `history` holds one record of plain values per epoch; `extra` plain values of the script.
    """

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


@contextmanager
def recorded_epoch(
    run: Run, progress: Progress, epochs: int, save: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """The end of an epoch, the same in every loop: record, log, save.

    Yields the record, which the block fills. After the block the epoch counts as finished; when it
    is interrupted, its steps so far are saved.
    """
    started = time.monotonic()
    record: dict[str, Any] = {"epoch": progress.epoch + 1}
    try:
        yield record
    except Interrupted:
        progress.seconds += time.monotonic() - started
        save()
        raise
    record["seconds"] = progress.seconds + time.monotonic() - started
    progress.history.append(record)
    progress.epoch, progress.step = progress.epoch + 1, 0
    progress.sums, progress.seconds = [0.0, 0.0, 0.0], 0.0
    run.log_epoch(record, epochs)
    save()


def best_epoch(history: list[dict[str, Any]], key: str) -> int:
    """The number of the first epoch whose `key` is highest."""
    return max(history, key=lambda record: (record[key], -record["epoch"]))["epoch"]


def first_epoch_reaching(history: list[dict[str, Any]], key: str, value: float) -> int | None:
    """The number of the first epoch whose `key` is at least `value`, or None."""
    return next((record["epoch"] for record in history if record[key] >= value), None)


def progress_bar(batches: Iterable[Any], progress: Progress, steps: int) -> tqdm:
    """The batches of the current epoch, of `steps` in all, behind a bar on a terminal."""
    return tqdm(
        batches,
        f"epoch {progress.epoch + 1}",
        steps,
        initial=progress.step,
        leave=False,
        disable=hide_progress(),
        unit="step",
    )


def report_step(
    model: nn.Module, meter: AverageMeter, progress: Progress, steps: int, report_freq: int
) -> None:
    """Every `report_freq` steps log the figures of the epoch so far; waits for the device.

    Raises UserError when they are not finite.
    """
    if progress.step % report_freq == 0:
        loss, accuracy = meter.read()
        title = f"epoch {progress.epoch + 1}"
        _log.info("%s step %d/%d loss %.4f top-1 %.2f", title, progress.step, steps, loss, accuracy)
        require_finite(model, loss, f"{title}, step {progress.step}")


def require_finite(model: nn.Module, loss: float, where: str) -> None:
    """Raise UserError unless the loss, all weights and batch-norm statistics are finite."""
    # One question to the device, not one for each tensor.
    tensors = (*model.parameters(), *model.buffers())
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
    if math.isfinite(loss) and bool(finite):
        return
    raise UserError(
        f"{where}: the loss is {loss:.4g} or a weight is not finite; the last checkpoint is kept, "
        "but would end alike: start again with a lower --learning_rate"
    )


# --- schedules and precision


def cosine(progress: float, first: float, last: float = 0.0) -> float:
    """Cosine annealing (Loshchilov and Hutter, 2017): `first` at progress 0, `last` at 1."""
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress))


def learning_rate_at(epoch: float, args: Namespace) -> float:
    """Learning rate after `epoch` epochs, of which the last may be a fraction.

    Linear from `WARMUP_START` times --learning_rate over --warmup_epochs, then a half cosine to 0
    at --epochs.
    """
    highest, warmup = args.learning_rate, args.warmup_epochs
    if epoch < warmup:
        return highest * (WARMUP_START + (1.0 - WARMUP_START) * epoch / warmup)
    return cosine((epoch - warmup) / (args.epochs - warmup), highest)


def linear_ramp(epoch: int, epochs: int, highest: float) -> float:
    """Linear from 0 over `epochs` epochs to `highest`, then constant."""
    return highest * min(1.0, epoch / epochs)


def size_at(epoch: int, args: Namespace) -> int | None:
    """Side of the training images in pixels by --sizes and --size_epochs; None: not resized."""
    for size, epochs in zip(args.sizes, args.size_epochs, strict=True):
        if epoch < epochs:
            return size
        epoch -= epochs
    return None


@dataclass(frozen=True)
class DropPath:
    """The drop-path schedule: a linear ramp to `prob` over `epochs`, of which `start_epoch` passed.

    Fine-tuning continues the ramp of the checkpoint that it starts from.
    """

    start_epoch: int
    epochs: int
    prob: float

    def at(self, epoch: int) -> float:
        """The probability in epoch `epoch` of the run."""
        return linear_ramp(self.start_epoch + epoch, self.epochs, self.prob)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The precision of forward passes: `amp` "bf16", "off", or "auto": bf16 on CUDA that has it."""
    if amp == "auto":
        enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
    else:
        enabled = amp == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


# --- the loss


def objective(
    logits: Tensor, targets: Tensor, args: Namespace, taught: Tensor | None = None
) -> Tensor:
    """What training minimises: cross entropy, smoothed, and distillation where there is a teacher.

    `logits` and `taught`, the teacher's, are (B, K); `targets` int64 (B,) or shares of the classes
    (B, K). --label_smoothing of each target is spread over all classes (Szegedy et al., 2016);
    with `taught` the loss is (1 - w) times that plus w times `distillation`, w = --teacher_weight.
    """
    hard = F.cross_entropy(logits, targets, label_smoothing=args.label_smoothing)
    if taught is None:
        return hard
    return torch.lerp(hard, distillation(logits, taught, args.temperature), args.teacher_weight)


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(logits / T)), mean over the batch.

    Both (B, K); T^2 keeps the gradient as large as that of the labels (Hinton et al., 2015).
    """
    given, wanted = (F.log_softmax(each / temperature, dim=1) for each in (logits, taught))
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)


# --- what is trained


class ModelEma(AveragedModel):
    """Exponential moving average of a network, batch-norm statistics included.

    e = d e + (1 - d) w after each step, with d = min(decay, (1 + n) / (10 + n)) after n steps as in
    TensorFlow's ExponentialMovingAverage, so that the first weights and variances are soon
    forgotten. The first step is copied, as are integers.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards `model`, without waiting for the device as torch's own method does."""
        steps = int(self.n_averaged)  # on the CPU, wherever the network is
        share = 1.0 if steps == 0 else max(1 - self.decay, 9 / (10 + steps))
        averages = [*self.module.parameters(), *self.module.buffers()]
        values = [*model.parameters(), *model.buffers()]
        moving: tuple[list[Tensor], list[Tensor]] = ([], [])
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                moving[0].append(average)
                moving[1].append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(*moving, share)
        self.n_averaged += 1


class TrainState:
    """All that training changes: model, optimizer, EMA where there is one, and progress.

    To use another optimizer, change `build_optimizer`.
    """

    def __init__(
        self,
        model: Network,
        args: Namespace,
        drop_path: DropPath,
        classes: Sequence[str] = CLASSES,
    ) -> None:
        self.model = model
        self.classes = tuple(classes)
        self.optimizer = build_optimizer(model.parameters(), args)
        self.ema = ModelEma(model, args.ema) if args.ema > 0 else None
        self.progress = Progress()
        self.drop_path = drop_path

    @property
    def weights(self) -> Network:
        """The network that is evaluated and saved as weights: the EMA where there is one."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state_dict` continues exactly."""
        return {
            "state_dict": self.model.state_dict(),
            "average": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": self.progress.to_dict(),
        }

    def load_state_dict(self, found: Mapping[str, Any], source: Path | str) -> None:
        """Continue from `found`, the content of the file `source`; UserError when it does not fit.

        Settings of the optimizer stay those of the flags.
        """
        with reading(source, "a checkpoint of the same script and version"):
            load_state(self.model, found["state_dict"], source)
            if self.ema is not None:
                load_state(self.ema, found["average"], source)
            load_optimizer(self.optimizer, found["optimizer"])
            self.progress = Progress(**found["state"])
            if len(self.progress.history) != self.progress.epoch:
                raise ValueError(f"{len(self.progress.history)} records of {self.progress.epoch}")


def build_optimizer(parameters: Iterable[nn.Parameter], args: Namespace) -> torch.optim.Optimizer:
    """SGD with the flags of training: the only place where the optimizer of weights is made."""
    return torch.optim.SGD(
        parameters,
        lr=args.learning_rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        nesterov=args.nesterov,
    )


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load what an optimizer keeps of each parameter; its settings stay those of the flags.

    Raises ValueError for values that are not finite or not of the parameters' shapes.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, kept in saved["state"].items():
        for value in kept.values():
            if torch.is_tensor(value) and not (
                value.shape in ((), parameters[index].shape) and bool(value.isfinite().all())
            ):
                raise ValueError(f"the optimizer does not fit parameter {index}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(saved["state"]), "param_groups": groups})


def compiled(model: nn.Module, batch_size: int) -> Forward:
    """`model` compiled by torch.compile for whole batches; smaller batches run uncompiled.

    Where compilation is not possible, a warning says so and all batches run uncompiled.
    """
    fast: Forward | None = None
    usable = True

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        nonlocal fast, usable
        if not usable or len(images) != batch_size:
            return model(images)
        first = fast is None
        try:
            if fast is None:
                fast = torch.compile(model, dynamic=False)
            return fast(images)
        except Exception as error:
            # After a first success only errors of the compiler are no reason to stop.
            compiler = first or type(error).__module__.startswith("torch._")
            if not compiler or is_out_of_memory(error):
                raise
            usable = False
            reason = " ".join(str(error).split())[:200]
            _log.warning("--compile: not possible here, going on without (%s)", reason)
            return model(images)

    return forward


# --- evaluation


@dataclass(frozen=True)
class Scores:
    """An evaluated split: logits float32 (N, K) and labels int64 (N,) on the CPU.

    `copies`, bool (N,): which images are in Training too, where that is known.
    """

    logits: Tensor
    labels: Tensor
    copies: Tensor | None = None

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

    def without_copies(self) -> Scores | None:
        """The scores of the other images; None where no image is a copy, or all are."""
        if self.copies is None or not self.copies.any() or self.copies.all():
            return None
        own = ~self.copies
        return Scores(self.logits[own], self.labels[own])


@torch.no_grad()  # in inference mode processes of torch 2.4 cannot exchange tensors
def evaluate(
    predict: Predict, split: Split, batch_size: int, run: Run, title: str = "evaluation"
) -> Scores:
    """Logits of every image of `split`, whole and unaugmented, in order.

    `predict` maps float32 (B, 1, H, W) in [0, 1] to logits (B, K) and is in evaluation mode. Each
    process predicts its shard, and all get the logits of all. Raises Interrupted.
    """
    logits = []
    own = shard(len(split.images))
    batches = evaluation_batches(split.take(own.rows), batch_size=batch_size)
    total = count_batches(own.largest, batch_size)
    # As many rounds in every process, as all ask `run.stop` together.
    rounds = islice(chain(batches, repeat(None)), total)
    for images in tqdm(rounds, title, total, leave=False, disable=hide_progress()):
        if images is not None:
            with run.precision:
                logits.append(predict(images).float())
        run.check_stop()
    copies = None if split.copies is None else split.copies.cpu()
    return Scores(gather_rows(torch.cat(logits)[: own.count].cpu()), split.labels.cpu(), copies)


def network_predictor(model: Network) -> Predict:
    """`model`, as it is now, as a function from images to the logits of evaluation mode."""
    network = fuse_batch_norms(model)
    return lambda images: network(images)[0]


def evaluate_splits(
    model: Network, splits: Mapping[str, Split], batch_size: int, run: Run, tta: str = "none"
) -> dict[str, Scores]:
    """`evaluate` a network on each of `splits`, by name, averaged over the views of `tta`."""
    predict = tta_predict(network_predictor(model), tta)
    return {
        name: evaluate(predict, split, batch_size, run, title=name)
        for name, split in splits.items()
    }


# --- training


def train_one_epoch(
    train: TrainState,
    batches: Iterable[tuple[Tensor, Tensor]],
    args: Namespace,
    run: Run,
    *,
    steps: int,
    forward: Forward,
    teacher: Predict | None = None,
    mix: Mix | None = None,
    relabel: Relabelling | None = None,
) -> AverageMeter:
    """Train on the batches of the current epoch from step `train.progress.step` on.

    `batches` yields images (B, 1, H, W) and labels (B,) of the whole batch, of which each process
    takes its shard; all step along the mean gradient. `forward` is the model, or that compiled.
    `teacher` sees the images at full size, the network at `size_at`. `mix` replaces images and
    labels by mixtures and targets (B, K); `relabel` may replace the labels of a step. Flags read:
    seed, report_freq, grad_clip, auxiliary_weight, and those of `objective`, `size_at` and
    `learning_rate_at`.

    Returns the meter of the epoch. The accuracy is against the labels as given, or for mixed images
    the class with the larger share; the loss is against relabelled or mixed targets. Ends early
    when `run.stop` says so.
    """
    model, progress = train.model, train.progress
    model.train()
    device = next(model.parameters()).device
    meter = AverageMeter(device, progress.sums)
    size = size_at(progress.epoch, args)
    bar = progress_bar(batches, progress, steps)
    for step, (images, labels) in enumerate(bar, progress.step):
        # All random numbers of a step depend on its number, so that a run resumes exactly.
        torch.manual_seed(derive_seed(args.seed, STEP_STREAM, progress.epoch, step))
        for group in train.optimizer.param_groups:
            group["lr"] = learning_rate_at(progress.epoch + step / steps, args)
        targets = labels
        if mix is not None:
            images, targets = mix(images, labels)
            labels = targets.argmax(dim=1)
        # After mixing, which must not depend on the number of processes.
        own = shard(len(images))
        images, labels, targets = (each[own.rows] for each in (images, labels, targets))
        if rank() > 0:
            torch.manual_seed(derive_seed(args.seed, STEP_STREAM, progress.epoch, step, rank()))

        with run.precision:
            taught = None if teacher is None else teacher(images).float()
            logits, auxiliary_logits = forward(resize(images, size))
        if relabel is not None and own.count:
            targets = relabel(logits.detach().float(), labels)
        loss = total = objective(logits.float(), targets, args, taught)
        if auxiliary_logits is not None:
            auxiliary_loss = objective(auxiliary_logits.float(), targets, args, taught)
            total = loss + args.auxiliary_weight * auxiliary_loss
        train.optimizer.zero_grad(set_to_none=True)
        total.backward()
        average_gradients(model, own.weight)
        nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        train.optimizer.step()
        if train.ema is not None:
            train.ema.update_parameters(model)

        if own.count:
            meter.update(loss, logits, labels)
        progress.step = step + 1
        report_step(model, meter, progress, steps, args.report_freq)
        if run.stop.reason:
            break
    progress.sums = meter.totals()
    return meter


def fit(
    train: TrainState,
    training: Split,
    evaluations: Mapping[str, Split],
    args: Namespace,
    run: Run,
    *,
    save: Callable[[], None],
    jitter: float = 0.0,
    teacher: Predict | None = None,
    relabel: Relabelling | None = None,
) -> None:
    """Train to --epochs epochs, evaluating `train.weights` on every split after each.

    `jitter` is that of brightness and contrast. Labels are not changed in epochs with mixed
    images, because their logits belong to two faces. `save()` is called at the start, after every
    epoch and when `run.stop` interrupts one. Raises Interrupted before the last epoch, UserError
    when the loss is not finite. Flags read: those of `train_one_epoch`, epochs, batch_size,
    limit_batches, compile, mixup, cutmix, mix_off_epochs, and those of `build_augmentation`.
    """
    model, progress = train.model, train.progress
    if model.auxiliary and any(size < 32 for size in args.sizes):
        raise UserError(
            f"--sizes {','.join(map(str, args.sizes))}: the auxiliary head needs 32 pixels; "
            "expected larger sizes, or a network without it"
        )
    steps = count_batches(len(training.images), args.batch_size, args.limit_batches)
    augmentation = build_augmentation(args, jitter)
    mix = mixing(args.mixup, args.cutmix, model.classifier.out_features)
    unmixed = args.epochs // 10 if args.mix_off_epochs is None else args.mix_off_epochs
    broadcast_model(model)
    forward = compiled(model, shard(args.batch_size).count) if args.compile else model
    if progress.step == 0:
        save()  # so that a run can be resumed that is killed before it saves again
    while progress.epoch < args.epochs:
        epoch = progress.epoch
        model.drop_path_prob = train.drop_path.at(epoch)
        mix_now = mix if epoch < args.epochs - unmixed else None
        relabel_now = None
        if relabel is not None and mix_now is None:
            counts = progress.extra.pop("counts", None)
            relabel_now = relabel if relabel.start_epoch(epoch, progress.step, counts) else None
        with recorded_epoch(run, progress, args.epochs, save) as record:
            batches = training_batches(
                training,
                batch_size=args.batch_size,
                augmentation=augmentation,
                seed=args.seed,
                epoch=epoch,
                first_step=progress.step,
                limit=args.limit_batches,
            )
            meter = train_one_epoch(
                train,
                batches,
                args,
                run,
                steps=steps,
                forward=forward,
                teacher=teacher,
                mix=mix_now,
                relabel=relabel_now,
            )
            if relabel_now is not None:
                progress.extra["counts"] = relabel_now.totals()
            loss, accuracy = meter.read()
            require_finite(model, loss, f"epoch {epoch + 1}")
            record["lr"] = learning_rate_at(epoch, args)
            record |= {"train_loss": loss, "train_accuracy": accuracy}
            run.check_stop()
            scored = evaluate_splits(train.weights, evaluations, args.batch_size, run)
            for name, scores in scored.items():
                record |= {f"{name}_loss": scores.loss, f"{name}_accuracy": scores.accuracy}
            if relabel_now is not None:
                repairs = relabel_now.read()
                record |= repairs.record()
                _log.info("%s", repairs.describe())
                progress.extra.setdefault("changes", []).extend(repairs.rows(epoch + 1))
                del progress.extra["counts"]


def image_limit(args: Namespace, batch_size: int) -> int | None:
    """The images of --limit_batches batches; None without a limit."""
    return args.limit_batches and args.limit_batches * batch_size


def build_augmentation(args: Namespace, jitter: float = 0.0) -> Augmentation:
    """The augmentation of training images by --cutout, --cutout_length, --affine and --erasing."""
    return Augmentation(
        jitter=jitter,
        cutout=args.cutout_length if args.cutout else 0,
        affine=getattr(args, "affine", 0.0),
        erasing=getattr(args, "erasing", 0.0),
    )
