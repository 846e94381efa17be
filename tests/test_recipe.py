"""The recipe: smoothed labels, a teacher, mixed batches and averaged weights, in plain versions."""

from __future__ import annotations

import copy

import pytest
import torch
from runs import weights
from test_engine import CPU, Small, batches, fit_small, new_run, new_state, parse, split, step
from torch import Tensor, nn
from torch.nn import functional as F

import engine
import relabel_training
import test_CK48
import train_FER2013
from common.arguments import RECIPES
from common.weights import load_members
from data.types import CLASSES
from engine import evaluate, network_predictor, train_one_epoch
from model import build_network
from recipe.loss import distillation, objective
from recipe.mixing import mixing
from relabelling import Relabelling
from runtime.errors import UserError
from runtime.logs import LOGGER_NAME

STRONG = RECIPES["strong"]


def smoothed(logits: Tensor, targets: Tensor, share: float) -> float:
    """The oracle: the mean of - sum of q log p with q = (1 - e) target + e / K."""
    wanted = targets if targets.ndim == 2 else torch.eye(7)[targets]
    q, p = (1 - share) * wanted.double() + share / 7, logits.double().exp()
    return -(q * (p / p.sum(1, keepdim=True)).log()).sum(1).mean().item()


def divergence(logits: Tensor, taught: Tensor, temperature: float) -> float:
    """The oracle: T^2 times the mean over images of sum of q log(q / p)."""
    p, q = ((each.double() / temperature).exp() for each in (logits, taught))
    p, q = (each / each.sum(1, keepdim=True) for each in (p, q))
    return temperature**2 * (q * (q / p).log()).sum(1).mean().item()


@pytest.fixture
def logits() -> Tensor:
    """Those of a network and of its teacher, (2, 6, 7)."""
    return torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))


def assert_stepped(model: nn.Module, plain: nn.Module) -> None:
    """`model` is `plain` after a step of plain SGD along its gradients."""
    for found, weight in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, weight - 0.5 * weight.grad)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_label_smoothing(share, logits):
    args = parse(f"--label_smoothing {share}")
    for targets in (torch.arange(6), torch.rand(6, 7).softmax(1)):
        found = objective(logits[0], targets, args).item()
        assert found == pytest.approx(smoothed(logits[0], targets, share), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation(temperature, logits):
    args = parse(f"--label_smoothing 0.1 --temperature {temperature} --teacher_weight 0.3")
    labels = torch.arange(6)
    found = objective(logits[0], labels, args, logits[1]).item()
    expected = 0.7 * smoothed(logits[0], labels, 0.1) + 0.3 * divergence(*logits, temperature)
    assert found == pytest.approx(expected, rel=1e-5)
    assert distillation(logits[1], logits[1], temperature).item() == pytest.approx(0.0)


def test_teacher_sees_the_mixed_batch_once_and_learns_nothing():
    images, labels = batches()[0]
    seen, teacher = [], Small().eval()

    def taught(images: Tensor) -> Tensor:
        seen.append(images)
        with torch.no_grad():
            return teacher(images)[0] * 2

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images / 2, F.one_hot(labels, 7).float()

    before, model, plain = copy.deepcopy(teacher.state_dict()), Small(), Small()
    step(model, [(images, labels)], teacher=taught, mix=mix)
    assert len(seen) == 1
    assert seen[0].equal(images / 2)
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())
    # The auxiliary head learns from the same teacher.
    losses = [objective(each, labels, parse(""), taught(images / 2)) for each in plain(images / 2)]
    (losses[0] + 0.4 * losses[1]).backward()
    assert_stepped(model, plain)


def test_several_teachers_give_their_mean_logits(tmp_path):
    images, logits = torch.rand(3, 1, 44, 44), []
    for seed in (0, 1):
        content = torch.load(weights(tmp_path / f"t{seed}.pt", seed), weights_only=True)
        network = build_network(content["model"]).eval()
        network.load_state_dict(content["state_dict"])
        logits.append(network(images)[0].detach())
    found = load_members("--teacher", ["t0", "t1"], CPU, model_path=str(tmp_path))[0](images)
    assert not found.requires_grad
    torch.testing.assert_close(found, (logits[0] + logits[1]) / 2)
    with pytest.raises(UserError, match="--teacher t2: no weights found"):
        load_members("--teacher", ["t0", "t2"], CPU, model_path=str(tmp_path))


# --- mixed batches


def draw_share(alpha: float) -> float:
    return torch.distributions.Beta(torch.tensor([alpha]), torch.tensor([alpha])).sample().item()


def shares(labels: Tensor, share: float) -> Tensor:
    """Targets of `share` of a label and the rest of the label before it."""
    own = torch.eye(7)[labels]
    return share * own + (1 - share) * torch.stack([own[k - 1] for k in range(len(labels))])


def blend(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The oracle of mixup: every image with the one before it, the first with the last."""
    share = draw_share(alpha)
    mixed = [share * images[k] + (1 - share) * images[k - 1] for k in range(len(images))]
    return torch.stack(mixed), shares(labels, share)


def paste(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The oracle of CutMix: a rectangle of the image before, counted by the pixels it has."""
    share, side = draw_share(alpha), images.shape[-1]
    column, row = torch.randint(side, (1,)).item(), torch.randint(side, (1,)).item()
    half = int(0.5 * (1 - share) ** 0.5 * side)
    mixed, pasted = images.clone(), 0
    for r in range(max(row - half, 0), min(row + half, side)):
        for c in range(max(column - half, 0), min(column + half, side)):
            mixed[:, 0, r, c] = torch.stack([images[k - 1, 0, r, c] for k in range(len(images))])
            pasted += 1
    return mixed, shares(labels, 1 - pasted / side**2)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
@pytest.mark.parametrize("kind, oracle", [("mixup", blend), ("cutmix", paste)])
def test_mixed_batch(kind, oracle, alpha):
    mix = mixing(*((alpha, 0.0) if kind == "mixup" else (0.0, alpha)), 7)
    images, labels = torch.rand(8, 1, 44, 44), torch.arange(8) % 7
    changed = 0
    for seed in range(5):
        torch.manual_seed(seed)
        found = mix(images, labels)
        torch.manual_seed(seed)
        torch.testing.assert_close(found, oracle(images, labels, alpha))
        torch.testing.assert_close(found[1].sum(1), torch.ones(8))
        changed += not found[0].equal(images)
    assert changed > 0
    assert labels.equal(torch.arange(8) % 7)


def test_mixup_or_cutmix_is_drawn_for_each_batch():
    assert mixing(0.0, 0.0, 7) is None
    mix, images, blended = mixing(1.0, 1.0, 7), torch.zeros(2, 1, 44, 44), 0
    images[1] = 1.0
    for seed in range(40):
        torch.manual_seed(seed)
        # A pasted image of black and white stays black and white.
        blended += bool(((mix(images, torch.arange(2))[0] % 1) != 0).any())
    assert 10 < blended < 30


def test_mixed_step():
    images, labels = batches()[0]
    model, plain = Small(), Small()

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return 0.3 * images + 0.7 * images.roll(1, 0), shares(labels, 0.3)

    meter = step(model, [(images, labels)], mix=mix)
    logits, head = plain(0.3 * images + 0.7 * images.roll(1, 0))

    def loss(found: Tensor) -> Tensor:
        return 0.3 * F.cross_entropy(found, labels) + 0.7 * F.cross_entropy(found, labels.roll(1))

    (loss(logits) + 0.4 * loss(head)).backward()
    assert_stepped(model, plain)
    right = (logits.argmax(1) == labels.roll(1)).float().mean().item()
    assert meter.read() == (pytest.approx(loss(logits).item()), pytest.approx(100 * right))


@pytest.mark.parametrize("words, epochs, mixed_epochs", [
    ("--mix_off_epochs 2", 5, 3), ("", 5, 5), ("", 20, 18),
])  # fmt: skip
def test_labels_are_repaired_after_the_mixed_epochs(
    words, epochs, mixed_epochs, monkeypatch, caplog
):
    caplog.set_level("INFO", LOGGER_NAME)
    mixed, asked, repaired = [], [], []

    class Watched(Relabelling):
        def begin(self, progress):
            asked.append(progress.epoch)
            return super().begin(progress)

        def __call__(self, logits, labels):
            repaired.append(asked[-1])
            return super().__call__(logits, labels)

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixed.append(len(images))
        return images, F.one_hot(labels, 7).float()

    monkeypatch.setattr(engine, "mixing", lambda *_: mix)
    options = {"threshold": 0.2, "fes": None, "fes_threshold": 0.0}
    watched = Watched(CLASSES, torch.device("cpu"), **options)
    fit_small(f"--epochs {epochs} --mixup 1 {words}", relabelling=watched)
    assert len(mixed) == 3 * mixed_epochs
    assert asked == list(range(mixed_epochs, epochs))
    assert sorted(set(repaired)) == asked
    assert ("no epoch changes labels" in caplog.text) == (not asked)


def test_no_label_changes_in_the_first_epoch():
    options = {"threshold": 1.0, "fes": None, "fes_threshold": 0.0}
    train = fit_small("--epochs 3", relabelling=Relabelling(CLASSES, CPU, **options))
    assert ["changed" in record for record in train.progress.history] == [False, True, True]


# --- averaged weights


@pytest.mark.parametrize("decay", [0.9, 0.2])
def test_ema_of_weights_and_statistics(decay):
    train, args = new_state(f"--ema {decay}")
    plain, plain_args = new_state("")
    seen, expected = batches(), None
    for number, batch in enumerate(seen):
        for each, flags in ((train, args), (plain, plain_args)):
            each.progress.step = number
            options = {"steps": len(seen), "forward": each.model}
            train_one_epoch(each, [batch], flags, new_run(), **options)
        now = {name: value.clone() for name, value in plain.model.state_dict().items()}
        # The first step is where the average begins.
        before = now if expected is None else expected
        kept = min(decay, (1 + number) / (10 + number))
        expected = {
            name: kept * before[name] + (1 - kept) * value if value.is_floating_point() else value
            for name, value in now.items()
        }
    found = train.weights.state_dict()
    assert {"norm.running_mean", "norm.running_var", "classifier.weight"} <= found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
        if value.is_floating_point():
            assert not found[name].equal(now[name])
    assert all(value.equal(now[name]) for name, value in train.model.state_dict().items())


def test_fit_scores_the_ema_and_trains_as_without():
    scores, ends = [], []
    for decay in (0.0, 0.9):
        train = fit_small(f"--epochs 2 --ema {decay}")
        shown = evaluate(network_predictor(train.weights), split(9, 1), 4, new_run())
        recorded = train.progress.history[-1]["PublicTest_loss"]
        assert recorded == pytest.approx(shown.loss, rel=1e-6)
        scores.append(shown.loss)
        ends.append(train.model.state_dict())
    assert scores[0] != scores[1]
    assert all(ends[0][name].equal(value) for name, value in ends[1].items())


@pytest.mark.parametrize("module", [train_FER2013, relabel_training, test_CK48])
def test_a_recipe_is_other_defaults(module):
    bare, strong = parse("", module), parse("--recipe strong", module)
    assert not any(getattr(bare, name) for name in STRONG.keys() - {"drop_path_prob"})
    assert bare.drop_path_prob == (0.2 if module is train_FER2013 else None)
    assert not any((bare.mixup, bare.cutmix, bare.cutout))
    changed = {name for name, value in vars(bare).items() if getattr(strong, name) != value}
    assert changed - {"started"} == {"recipe", *STRONG}
    assert {name: getattr(strong, name) for name in STRONG} == STRONG
    own = parse("--ema 0 --recipe strong --no-nesterov --affine 0.3", module)
    assert (own.ema, own.nesterov, own.affine) == (0, False, 0.3)
    assert own.warmup_epochs == STRONG["warmup_epochs"]
