"""The recipe: smoothed labels, mixed batches and averaged weights, each against a plain version."""

from __future__ import annotations

import copy

import pytest
import torch
from runs import weights
from torch import Tensor, nn
from torch.nn import functional as F

import relabel_training
import search
import test_CK48
import train_FER2013
from common import cli, recipe
from common.objective import objective
from common.weights import load_members
from data.augment import Augmentation, training_batches
from data.fer2013 import Split
from data.mix import mixing
from engine import TrainState, autocast, evaluate, fit, network_predictor, train_one_epoch
from model import build_network
from utils import Stop, UserError

CPU = torch.device("cpu")
STRONG = recipe.RECIPES["strong"]


class Small(nn.Module):
    """Has what the loop asks of a network, and a batch norm whose statistics move."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.drop_path_prob = 0.0
        self.norm = nn.BatchNorm1d(16)
        self.linear = nn.Linear(16, 7)
        self.head = nn.Linear(16, 7)

    def forward(self, x):
        x = self.norm(F.adaptive_avg_pool2d(x, 4).flatten(1))
        return self.linear(x), self.head(x) if self.training else None


def parse(words: str, module=train_FER2013):
    return cli.parse(module.build_parser(), words.split())


def split(count: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 48, 48), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 7)


def batches(epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
    options = {"batch_size": 8, "augmentation": Augmentation(), "seed": 0, "epoch": epoch}
    return list(training_batches(split(20), **options))


def train(model: nn.Module, seen: list[tuple[Tensor, Tensor]], **changes):
    """An epoch of the loop at a fixed rate, by plain SGD."""
    return train_one_epoch(
        model, seen, torch.optim.SGD(model.parameters(), 0.5), forward=model, state=TrainState(),
        steps=len(seen), seed=0, learning_rate_at=lambda _: 0.5, auxiliary_weight=0.4,
        grad_clip=100.0, precision=autocast(CPU, "off"), report_freq=10, stop=Stop(), **changes,
    )  # fmt: skip


def fit_small(model: nn.Module, state: TrainState, **changes) -> None:
    options = {
        "epochs": 5, "batch_size": 8, "augmentation": Augmentation(), "learning_rate": 0.1,
        "warmup_epochs": 0, "drop_path_at": lambda _: 0.0, "auxiliary_weight": 0.4,
        "grad_clip": 5.0, "seed": 0, "precision": autocast(CPU, "off"), "report_freq": 100,
        "limit_batches": None, "compile_forward": False, "save": lambda _: None, "stop": Stop(),
    }  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    fit(model, optimizer, split(20), {"PublicTest": split(9, 1)}, state=state,
        **{**options, **changes})  # fmt: skip


# ---------------------------------------------------------------- label smoothing


def smoothed(logits: Tensor, targets: Tensor, share: float) -> float:
    """The oracle: - sum of q log p with q = (1 - e) target + e / K, number by number."""
    total = 0.0
    for row, target in zip(logits.double().log_softmax(1), targets, strict=True):
        for k in range(7):
            wanted = float(target[k]) if target.ndim else float(int(target) == k)
            total -= ((1 - share) * wanted + share / 7) * float(row[k])
    return total / len(logits)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_label_smoothing_spreads_a_share_of_every_label_or_mixture_over_all_classes(share):
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    labels, mixture = torch.arange(6), torch.rand(6, 7).softmax(1)
    criterion = objective(label_smoothing=share)(torch.rand(6, 1, 44, 44))
    for targets in (labels, mixture):
        found = criterion(logits, targets).item()
        assert found == pytest.approx(smoothed(logits, targets, share), rel=1e-5)


# ---------------------------------------------------------------- distillation


def divergence(logits: Tensor, taught: Tensor, temperature: float) -> float:
    """The oracle: T^2 times the mean over images of sum of q log(q / p), number by number."""
    total = 0.0
    for given, wanted in zip(logits.double(), taught.double(), strict=True):
        p, q = (torch.exp(row / temperature) for row in (given, wanted))
        p, q = p / p.sum(), q / q.sum()
        total += sum(float(q[k]) * float((q[k] / p[k]).log()) for k in range(7))
    return temperature**2 * total / len(logits)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_adds_the_divergence_from_the_teachers_soft_answers(temperature):
    generator = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(6, 7, generator=generator) for _ in range(2))
    labels = torch.arange(6)
    criterion_for = objective(
        label_smoothing=0.1, teacher=lambda images: taught, temperature=temperature,
        teacher_weight=0.3,
    )  # fmt: skip
    found = criterion_for(torch.rand(6, 1, 44, 44))(logits, labels).item()
    expected = 0.7 * smoothed(logits, labels, 0.1) + 0.3 * divergence(logits, taught, temperature)
    assert found == pytest.approx(expected, rel=1e-5)
    assert divergence(taught, taught, temperature) == pytest.approx(0.0, abs=1e-12)


def test_the_teacher_sees_the_batch_that_is_trained_on_once_and_learns_nothing():
    seen, teacher = [], Small().eval()

    def taught(images: Tensor) -> Tensor:
        seen.append(images)
        found = teacher(images)[0]
        assert not found.requires_grad
        return found

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images / 2, F.one_hot(labels, 7).float()

    before, model = copy.deepcopy(teacher.state_dict()), Small()
    criterion_for = objective(
        label_smoothing=0.0, teacher=taught, temperature=2.0, teacher_weight=0.5
    )
    (images, labels), *_ = batches()
    train(model, [(images, labels)], mix=mix, criterion_for=criterion_for)
    assert len(seen) == 1
    assert seen[0].equal(images / 2)
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())
    plain = Small()
    # The auxiliary head learns from the same teacher.
    logits, head = plain(images / 2)
    (loss, side) = (criterion_for(images / 2)(each, labels) for each in (logits, head))
    (loss + 0.4 * side).backward()
    torch.testing.assert_close(
        model.head.weight, Small().head.weight - 0.5 * plain.head.weight.grad
    )


def test_several_teachers_teach_the_mean_of_their_logits(tmp_path):
    for seed in (0, 1):
        weights(tmp_path / f"t{seed}.pt", seed)
    images = torch.rand(3, 1, 44, 44)
    found = load_members("--teacher", ["t0", "t1"], str(tmp_path), CPU)(images)
    logits = []
    for seed in (0, 1):
        network = build_network(torch.load(tmp_path / f"t{seed}.pt", weights_only=True)["model"])
        network.load_state_dict(torch.load(tmp_path / f"t{seed}.pt")["state_dict"])
        logits.append(network.eval()(images)[0])
    torch.testing.assert_close(found, (logits[0] + logits[1]) / 2)
    with pytest.raises(UserError, match="--teacher t2: no weights found"):
        load_members("--teacher", ["t0", "t2"], str(tmp_path), CPU)


# ---------------------------------------------------------------- mixed batches


def draw_share(alpha: float) -> float:
    return torch.distributions.Beta(torch.tensor([alpha]), torch.tensor([alpha])).sample().item()


def blend(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The oracle of mixup: every image with the one before it, the first with the last."""
    share = draw_share(alpha)
    mixed, targets = torch.empty_like(images), torch.zeros(len(labels), 7)
    for k in range(len(images)):
        mixed[k] = share * images[k] + (1 - share) * images[k - 1]
        targets[k, labels[k]] += share
        targets[k, labels[k - 1]] += 1 - share
    return mixed, targets


def paste(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The oracle of CutMix: a rectangle of the image before, counted by the pixels it has."""
    share, side = draw_share(alpha), images.shape[-1]
    column, row = torch.randint(side, (1,)).item(), torch.randint(side, (1,)).item()
    half = int(0.5 * (1 - share) ** 0.5 * side)
    mixed, targets, pasted = images.clone(), torch.zeros(len(labels), 7), 0
    for r in range(max(row - half, 0), min(row + half, side)):
        for c in range(max(column - half, 0), min(column + half, side)):
            mixed[:, 0, r, c] = torch.stack([images[k - 1, 0, r, c] for k in range(len(images))])
            pasted += 1
    for k in range(len(images)):
        targets[k, labels[k]] += 1 - pasted / side**2
        targets[k, labels[k - 1]] += pasted / side**2
    return mixed, targets


@pytest.mark.parametrize("flag, oracle", [("mixup", blend), ("cutmix", paste)])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_a_mixed_batch_is_as_written_out(flag, oracle, alpha):
    mix = mixing(**{"mixup": 0.0, "cutmix": 0.0, flag: alpha})
    images, labels = torch.rand(8, 1, 44, 44), torch.arange(8) % 7
    changed = 0
    for seed in range(5):
        torch.manual_seed(seed)
        found = mix(images, labels)
        torch.manual_seed(seed)
        expected = oracle(images, labels, alpha)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found[1].sum(1), torch.ones(8))
        changed += not found[0].equal(images)
    assert changed > 0
    assert labels.equal(torch.arange(8) % 7)


def test_with_both_a_coin_decides_and_with_none_nothing_is_mixed():
    assert mixing(mixup=0.0, cutmix=0.0) is None
    mix, images, blended = mixing(mixup=1.0, cutmix=1.0), torch.zeros(2, 1, 44, 44), 0
    images[1] = 1.0
    for seed in range(40):
        torch.manual_seed(seed)
        # A pasted image of black and white stays black and white.
        blended += bool(((mix(images, torch.arange(2))[0] % 1) != 0).any())
    assert 10 < blended < 30


def test_a_mixed_step_trains_on_both_classes_and_counts_the_larger_share():
    images, labels = batches()[0]
    state, model = copy.deepcopy(Small().state_dict()), Small()

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        targets = 0.3 * F.one_hot(labels, 7) + 0.7 * F.one_hot(labels.roll(1), 7)
        return 0.3 * images + 0.7 * images.roll(1, 0), targets

    meter = train(model, [(images, labels)], mix=mix)
    plain = Small()
    logits, head = plain(0.3 * images + 0.7 * images.roll(1, 0))

    def loss(found: Tensor) -> Tensor:
        return 0.3 * F.cross_entropy(found, labels) + 0.7 * F.cross_entropy(found, labels.roll(1))

    (loss(logits) + 0.4 * loss(head)).backward()
    for name, weight in plain.named_parameters():
        expected = state[name] - 0.5 * weight.grad
        torch.testing.assert_close(model.state_dict()[name], expected)
    right = (logits.argmax(1) == labels.roll(1)).float().mean().item()
    assert meter.read() == (pytest.approx(loss(logits).item()), pytest.approx(100 * right))


def test_mixing_ends_before_the_last_epochs_and_labels_are_repaired_only_then():
    asked, mixed, repaired = [], [], []

    def relabel_at(epoch):
        asked.append(epoch)
        return lambda logits, labels: repaired.append(epoch) or labels

    def mix(images, labels):
        mixed.append(len(images))
        return images, F.one_hot(labels, 7).float()

    flags = parse("--epochs 5 --mixup 1 --mix_off_epochs 2")
    planned = recipe.fit_arguments(flags)["mix_at"]
    assert [planned(epoch) is not None for epoch in range(5)] == [True] * 3 + [False] * 2
    mix_at = lambda epoch: mix if planned(epoch) else None  # noqa: E731
    fit_small(Small(), TrainState(), mix_at=mix_at, relabel_at=relabel_at)
    assert len(mixed) == 3 * 3
    assert asked == [3, 4]
    assert sorted(set(repaired)) == [3, 4]
    planned = recipe.fit_arguments(parse("--epochs 20 --cutmix 1"))["mix_at"]
    assert [planned(epoch) is not None for epoch in (0, 17, 18)] == [True, True, False]


# ---------------------------------------------------------------- averaged weights


@pytest.mark.parametrize("decay", [0.9, 0.2])
def test_the_average_follows_weights_and_statistics_step_by_step(decay):
    model, plain, seen = Small(), Small(), batches()
    average = recipe.averaged(model, decay)
    train(model, seen, average=average)
    expected = None
    for steps, batch in enumerate(seen):
        train(plain, [batch])
        now = {name: value.clone() for name, value in plain.state_dict().items()}
        # The first step is where the average begins.
        before = now if expected is None else expected
        kept = min(decay, (1 + steps) / (10 + steps))
        expected = {
            name: kept * before[name] + (1 - kept) * value if value.is_floating_point() else value
            for name, value in now.items()
        }
    found = average.module.state_dict()
    assert {"norm.running_mean", "norm.running_var", "linear.weight"} <= found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
        if value.is_floating_point():
            assert not found[name].equal(plain.state_dict()[name])
    assert all(a.equal(b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_the_average_soon_forgets_where_it_began():
    model = nn.BatchNorm1d(1)
    average = recipe.averaged(model, 0.999)
    for value in [1.0] + 50 * [0.01]:
        model.running_var.fill_(value)
        average.update_parameters(model)
    assert average.module.running_var.item() == pytest.approx(0.01, rel=1e-3)


def test_the_average_asks_no_value_of_the_device():
    # Tensors without values refuse every question whose answer the host would wait for.
    model = Small().to("meta")
    average = recipe.averaged(model, 0.999)
    for _ in range(3):
        average.update_parameters(model)
    assert int(average.n_averaged) == 3
    with pytest.raises(RuntimeError):
        average.module.norm.running_var.max().item()


def test_a_fit_scores_the_average_and_trains_as_without():
    scores, ends = [], []
    for decay in (0.0, 0.9):
        model, state = Small(), TrainState()
        average = recipe.averaged(model, decay)
        fit_small(model, state, epochs=2, average=average)
        shown = evaluate(
            network_predictor(model if average is None else average.module), split(9, 1),
            batch_size=4, precision=autocast(CPU, "off"), stop=Stop(),
        )  # fmt: skip
        assert state.history[-1]["PublicTest_loss"] == pytest.approx(shown.loss, rel=1e-6)
        scores.append(shown.loss)
        ends.append(model.state_dict())
    assert scores[0] != scores[1]
    assert all(ends[0][name].equal(value) for name, value in ends[1].items())


# ---------------------------------------------------------------- the flags


@pytest.mark.parametrize(
    "module, start",
    [(train_FER2013, ""), (relabel_training, "--checkpoint x"), (test_CK48, "--checkpoint x")],
    ids=["train", "relabel", "folds"],
)
def test_a_bare_command_is_the_papers_and_a_recipe_is_other_defaults(module, start):
    bare, strong = parse(start, module), parse(f"{start} --recipe strong", module)
    added = STRONG.keys() - {"drop_path_prob"}
    assert not any(getattr(bare, name) for name in added)
    assert bare.drop_path_prob == (0.2 if module is train_FER2013 else None)
    assert not any((bare.mixup, bare.cutmix, bare.cutout))
    changed = {name for name, value in vars(bare).items() if getattr(strong, name) != value}
    changed -= {"started"}
    assert changed == {"recipe", *STRONG}
    assert {name: getattr(strong, name) for name in STRONG} == STRONG
    own = parse(f"{start} --ema 0 --recipe strong --no-nesterov --affine 0.3", module)
    assert (own.ema, own.nesterov, own.affine) == (0, False, 0.3)
    assert own.warmup_epochs == STRONG["warmup_epochs"]


def test_the_recipes_names_are_flags_of_training_and_the_search_has_no_recipe():
    names = vars(train_FER2013.build_parser().parse_args([]))
    assert all(name in names for flags in recipe.RECIPES.values() for name in flags)
    assert "recipe" not in vars(search.build_parser().parse_args([]))


def test_the_flags_reach_the_augmentation():
    found = recipe.fit_arguments(parse("--affine 0.1 --erasing 0.3 --cutout"), jitter=0.5)
    assert found["augmentation"] == Augmentation(jitter=0.5, cutout=16, affine=0.1, erasing=0.3)
    assert recipe.fit_arguments(parse(""))["augmentation"] == Augmentation()


def test_mixing_that_would_never_begin_is_refused():
    with pytest.raises(UserError, match="--mix_off_epochs 3: expected fewer than --epochs 3"):
        parse("--epochs 3 --mixup 0.2 --mix_off_epochs 3")
