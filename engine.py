"""The loops that the scripts share: train an epoch, evaluate, fit.

`args` is everywhere the parsed command line; the functions name the flags that they read.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.augment import Augmentation, resize
from data.batches import count_batches, count_steps, evaluation_batches, training_batches
from data.types import CLASSES, Split
from model import Network, fuse_batch_norms
from recipe.compiling import Forward, compiled
from recipe.ema import ModelEma
from recipe.loss import objective
from recipe.mixing import Mix, mixing
from recipe.schedules import DropPath, learning_rate_at, size_at
from recipe.views import tta_predict
from relabelling import Relabelling
from runtime.errors import UserError, reading
from runtime.logs import log
from runtime.processes import (
    average_gradients,
    broadcast_model,
    gather,
    rank,
    shard,
)
from runtime.run import Progress, Run, progress_bar, recorded_epoch
from utils import AverageMeter, derive_seed, load_state

# The random stream of a training step (mixing, drop-path); data.batches has streams 0 and 1.
STEP_STREAM = 2

Predict = Callable[[Tensor], Tensor]


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
    relabelling: Relabelling | None = None,
) -> AverageMeter:
    """Train on the batches of the current epoch from step `train.progress.step` on.

    `batches` yields images (B, 1, H, W) and labels (B,) of the whole batch, of which each process
    takes its shard; all step along the mean gradient. `forward` is the model, or that compiled.
    `teacher` sees the images at full size, the network at `size_at`. `mix` replaces images and
    labels by mixtures and targets (B, K); `relabelling` may replace the labels of a step. Flags
    read: seed, report_freq, grad_clip, auxiliary_weight, and those of `objective`, `size_at` and
    `learning_rate_at`.

    Returns the meter of the epoch. The accuracy is against the labels as given, or for mixed images
    the class with the larger share; the loss is against relabelled or mixed targets. Ends early
    when the run should stop.
    """
    model, progress = train.model, train.progress
    model.train()
    meter = AverageMeter(next(model.parameters()).device, progress.sums)
    size = size_at(progress.epoch, args)
    title = f"epoch {progress.epoch + 1}"
    for images, labels in progress_bar(batches, title, steps, progress.step, "step"):
        # All random numbers of a step depend on its number, so that a run resumes exactly.
        keys = args.seed, STEP_STREAM, progress.epoch, progress.step
        torch.manual_seed(derive_seed(*keys))
        targets = labels
        if mix is not None:
            images, targets = mix(images, labels)
            labels = targets.argmax(dim=1)
        # Mixed first, then shared out, so that mixing is the same for any number of processes.
        own = shard(len(images))
        images, labels, targets = (part[own.rows] for part in (images, labels, targets))
        if rank() > 0:
            torch.manual_seed(derive_seed(*keys, rank()))

        train.optimizer.zero_grad(set_to_none=True)
        with run.precision:
            taught = None if teacher is None else teacher(images).float()
            logits, auxiliary_logits = forward(resize(images, size))
        if relabelling is not None and own.count:
            targets = relabelling(logits.detach().float(), labels)
        loss = total = objective(logits.float(), targets, args, taught)
        if auxiliary_logits is not None:
            auxiliary_loss = objective(auxiliary_logits.float(), targets, args, taught)
            total = loss + args.auxiliary_weight * auxiliary_loss
        set_learning_rate(
            train.optimizer, learning_rate_at(progress.epoch + progress.step / steps, args)
        )
        total.backward()
        optimizer_step(model, train.optimizer, own.weight, args.grad_clip)
        if train.ema is not None:
            train.ema.update_parameters(model)

        if own.count:
            meter.update(loss, logits, labels)
        progress.step += 1
        report_step(model, meter, progress, steps, args.report_freq)
        if run.stop.requested():
            break
    progress.sums = meter.totals()
    return meter


def optimizer_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, weight: float, grad_clip: float
) -> None:
    """One step of `optimizer` along the mean over all processes of the gradient in `model`.

    `weight` is that of this process's shard; `grad_clip` the largest norm of the gradient.
    """
    average_gradients(model, weight)
    nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


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
    relabelling: Relabelling | None = None,
) -> None:
    """Train to --epochs epochs, evaluating `train.weights` on every split after each.

    `jitter` is that of brightness and contrast. Labels are not changed in epochs with mixed
    images, because their logits belong to two faces. `save()` is called before the first step of
    an epoch, after every epoch, and when the run stops in one. Raises Interrupted when that is
    before the end of the last epoch, UserError when the loss is not finite. Flags read: those of
    `train_one_epoch`, epochs, batch_size, limit_batches, compile, mixup, cutmix, mix_off_epochs,
    and those of `build_augmentation`.
    """
    model, progress = train.model, train.progress
    if model.auxiliary and any(size < 32 for size in args.sizes):
        raise UserError(
            f"--sizes {','.join(map(str, args.sizes))}: the auxiliary head needs 32 pixels; "
            "expected larger sizes, or a network without it"
        )
    steps = count_steps(training, args.batch_size, args.limit_batches)
    last = len(training.labels) - (steps - 1) * args.batch_size  # images of the last batch
    one_left = last == 1 and training.groups is None
    if model.auxiliary and one_left and any(size < 44 for size in args.sizes):
        raise UserError(
            f"--batch_size {args.batch_size}: leaves one of {len(training.labels)} images as the "
            "last batch, too few for the batch norms of the auxiliary head at less than 44 pixels; "
            "expected another"
        )
    augmentation = build_augmentation(args, jitter)
    mix = mixing(args.mixup, args.cutmix, model.classifier.out_features)
    unmixed = args.epochs // 10 if args.mix_off_epochs is None else args.mix_off_epochs
    mixed = 0 if mix is None else args.epochs - unmixed
    first_relabelled = max(mixed, 1)
    if relabelling is not None and first_relabelled >= args.epochs:
        log.info("no epoch changes labels: expected one after the first, without mixed images")
    broadcast_model(model)
    own_size = shard(args.batch_size).count
    forward = compiled(model, own_size, run.device) if args.compile else model
    if progress.step == 0:
        save()  # so that a run can be resumed that is killed before it saves again
    while progress.epoch < args.epochs:
        epoch = progress.epoch
        model.drop_path_prob = train.drop_path.at(epoch)
        mix_now = mix if epoch < mixed else None
        relabelling_now = relabelling if epoch >= first_relabelled else None
        if relabelling_now is not None:
            relabelling_now.begin(progress)
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
                relabelling=relabelling_now,
            )
            if relabelling_now is not None:
                relabelling_now.keep_counts(progress)
            loss, accuracy = meter.read()
            require_finite(model, loss, f"epoch {epoch + 1}")
            record["lr"] = learning_rate_at(epoch, args)
            record |= {"train_loss": loss, "train_accuracy": accuracy}
            run.stop.check()
            scores = evaluate_splits(train.weights, evaluations, args.batch_size, run)
            for name, split_scores in scores.items():
                record[f"{name}_loss"] = split_scores.loss
                record[f"{name}_accuracy"] = split_scores.accuracy
            if relabelling_now is not None:
                relabelling_now.finish(progress, record)


def build_augmentation(args: Namespace, jitter: float = 0.0) -> Augmentation:
    """The augmentation of training images by --cutout, --cutout_length, --affine and --erasing."""
    cutout = args.cutout_length if args.cutout else 0
    return Augmentation(jitter=jitter, cutout=cutout, affine=args.affine, erasing=args.erasing)


def report_step(
    model: nn.Module, meter: AverageMeter, progress: Progress, steps: int, report_freq: int
) -> None:
    """Every `report_freq` steps log the figures of the epoch so far; waits for the device.

    Raises UserError when they are not finite.
    """
    if progress.step % report_freq == 0:
        loss, accuracy = meter.read()
        title = f"epoch {progress.epoch + 1}"
        log.info("%s step %d/%d loss %.4f top-1 %.2f", title, progress.step, steps, loss, accuracy)
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


# --- what is trained


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

    def load_state_dict(self, checkpoint: Mapping[str, Any], source: Path | str) -> None:
        """Continue from `checkpoint`, the content of `source`; UserError when it does not fit.

        Settings of the optimizer stay those of the flags.
        """
        with reading(source, "a checkpoint of the same script and version"):
            load_state(self.model, checkpoint["state_dict"], source)
            if self.ema is not None:
                load_state(self.ema, checkpoint["average"], source)
            load_optimizer(self.optimizer, checkpoint["optimizer"])
            self.progress = Progress(**checkpoint["state"])


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
    """Load what an optimizer keeps of each parameter; its settings stay those of the flags."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(saved["state"]), "param_groups": groups})


# --- evaluation


@dataclass(frozen=True)
class Scores:
    """An evaluated split: logits float32 (N, K) and labels int64 (N,) on the CPU.

    `copies`, bool (N,): which images are in Training too, where that is known. `total`: of a part,
    the images of the whole split.
    """

    logits: Tensor
    labels: Tensor
    copies: Tensor | None = None
    total: int | None = None

    @property
    def loss(self) -> float:
        """Mean cross entropy."""
        return F.cross_entropy(self.logits.double(), self.labels).item()

    @property
    def predictions(self) -> Tensor:
        """int64 (N,): the most likely class of each image."""
        return self.logits.argmax(dim=1)

    @property
    def correct(self) -> Tensor:
        """bool (N,): whether that class is the label."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100.0 * self.correct.double().mean().item()

    def without_copies(self) -> Scores | None:
        """The scores of the other images; None where no image is a copy, or all are."""
        if self.copies is None or not self.copies.any() or self.copies.all():
            return None
        own = ~self.copies
        return Scores(self.logits[own], self.labels[own])


@torch.no_grad()  # not inference_mode, whose tensors processes of torch 2.4 cannot exchange
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
    # As many rounds in every process: asking `run.stop` is a collective call.
    rounds = islice(chain(batches, repeat(None)), total)
    for images in progress_bar(rounds, title, total):
        if images is not None:
            with run.precision:
                logits.append(predict(images).float())
        run.stop.check()
    copies = None if split.copies is None else split.copies.cpu()
    whole = torch.cat(gather(torch.cat(logits)[: own.count].cpu()))
    return Scores(whole, split.labels.cpu(), copies, split.total)


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


def image_limit(args: Namespace, batch_size: int) -> int | None:
    """The images of --limit_batches batches; None without a limit."""
    return args.limit_batches and args.limit_batches * batch_size
