"""Several processes against the oracle: one that takes their shares one after the other."""

from __future__ import annotations

import copy
import json
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fer2013_files import write_small_table
from runs import SEARCH, SIZE, command, run, same, stop_when, weights
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import architect
from architect import Batch
from data import augment
from data.augment import Augmentation, training_batches
from data.fer2013 import Split, load_fer2013
from data.halves import alphas_batches
from data.mix import mixing
from data.relabel import truth_batches
from engine import STEP_STREAM, autocast, cosine, one_cycle, rising
from genotypes import Auto_FERNet, format_genotype
from model import build_network
from model_search import Network
from search import SearchState, search
from tools import ranks
from tools.runs import Child
from utils import Stop, derive_seed

# 77 images: batches of 12 and a last one of 5, of which the third of three ranks gets nothing.
EACH = 11
TRAIN = (
    "train_FER2013.py --data {data} --arch --init_channels 4 --layers 3 --epochs 3 --batch_size 12 "
    "--drop_path_prob 0.5 --mixup 0.4 --mix_off_epochs 1 --ema 0.9 --report_freq 1 --device cpu "
    "--model_path {out}"
).split()
FULL = autocast(torch.device("cpu"), "off")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_table(tmp_path_factory.mktemp("data"), each=EACH)


def in_double() -> None:
    """Compute in float64 from here on: in float32 the order of three summands grows to 1e-3."""
    torch.set_default_dtype(torch.float64)
    augment.to_float = lambda images: images.double() / 255


@pytest.fixture
def double() -> Iterator[None]:
    """`in_double` for the oracle."""
    before = augment.to_float
    in_double()
    yield
    torch.set_default_dtype(torch.float32)
    augment.to_float = before


def start(
    words: list[str],
    count: int,
    folder: Path,
    *,
    name: str = "rank",
    before: Callable[[], None] | None = None,
) -> list[Child]:
    """`count` processes as torchrun would start them, `name`K.log of each in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        Child(
            words,
            folder / f"{name}{k}.log",
            before,
            environment={
                "RANK": str(k), "LOCAL_RANK": str(k), "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for k in range(count)
    ]  # fmt: skip


def finish(words: list[str], count: int, folder: Path, **options: Any) -> list[Child]:
    """Run to the end; every rank with status 0."""
    children = start(words, count, folder, **options)
    assert [child.wait() for child in children] == [0] * count, [c.printed() for c in children]
    return children


def words_of(template: list[str], data: Path, out: Path, *more: str) -> list[str]:
    return command(template, data, out, *more)[1:]


def read(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)


# --- the oracle: the shares of a batch one after the other, in one process


def parts(total: int, count: int) -> list[tuple[int, int]]:
    """From where to where each of `count` ranks has images; fewer pairs where some have none."""
    filled = max(1, min(count, total // 2))
    sizes = [total // filled + (k < total % filled) for k in range(filled)]
    return [(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(filled)]


def accumulate(model: torch.nn.Module, losses: list[tuple[float, Callable[[], torch.Tensor]]]):
    """Gradients and batch-norm statistics of `model`: the means over `losses`, by their weights.

    Each loss begins with the statistics that the model has now.
    """
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients: dict = {}
    after = {name: torch.zeros_like(buffer) for name, buffer in before.items()}
    for weight, loss in losses:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        model.zero_grad()
        loss().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = gradients.get(name, 0) + weight * parameter.grad
        for name, buffer in model.named_buffers():
            counts = not buffer.is_floating_point()
            after[name] = buffer.clone() if counts else after[name] + weight * buffer
    for name, parameter in model.named_parameters():
        parameter.grad = gradients.get(name)
    for name, buffer in model.named_buffers():
        buffer.copy_(after[name])


def evaluate_plainly(model: torch.nn.Module, split: Split) -> float:
    """Percent of the split's images that are right."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        right = model(augment.to_float(split.images))[0].argmax(1) == split.labels
    return 100 * right.double().mean().item()


def train_oracle(data: Path, ranks_at: Callable[[int], int]) -> tuple[dict, dict, list[dict]]:
    """TRAIN in one process, the step `k` with the shares of `ranks_at(k)` ranks.

    Returns the state of the network, that of the average, and a record an epoch.
    """
    splits = load_fer2013(data, report=lambda _: None)
    torch.manual_seed(0)
    model = build_network({**SIZE, "genotype": format_genotype(Auto_FERNet)})
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    mix, records, done = mixing(mixup=0.4, cutmix=0.0), [], 0
    for epoch in range(3):
        model.train()
        model.drop_path_prob = rising(epoch, 3, 0.5)
        right = 0
        batches = training_batches(
            splits["Training"], batch_size=12, augmentation=Augmentation(), seed=0, epoch=epoch
        )
        for step, (images, labels) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = one_cycle(epoch + step / 7, epochs=3, highest=0.025)
            torch.manual_seed(derive_seed(0, STEP_STREAM, epoch, step))
            targets = labels
            if epoch < 2:
                images, targets = mix(images, labels)
                labels = targets.argmax(1)

            def loss(
                rank: int, rows: slice, images=images, targets=targets, labels=labels,
                place=(epoch, step),
            ) -> torch.Tensor:  # fmt: skip
                nonlocal right
                if rank > 0:
                    torch.manual_seed(derive_seed(0, STEP_STREAM, *place, rank))
                logits, auxiliary = (each.float() for each in model(images[rows]))
                right += int((logits.argmax(1) == labels[rows]).sum())
                main = F.cross_entropy(logits, targets[rows])
                return main + 0.4 * F.cross_entropy(auxiliary, targets[rows])

            shares = parts(len(images), ranks_at(done))
            losses = [
                ((end - begin) / len(images), lambda k=k, r=slice(begin, end): loss(k, r))
                for k, (begin, end) in enumerate(shares)
            ]
            accumulate(model, losses)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            average.update_parameters(model)
            done += 1
        record = {"train_accuracy": 100 * right / len(splits["Training"].labels)}
        for name in ("PublicTest", "PrivateTest"):
            record[f"{name}_accuracy"] = evaluate_plainly(average.module, splits[name])
        records.append(record)
    return model.state_dict(), average.state_dict(), records


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


# --- shares


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 12, 77])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_near_equal_parts_of_all_images_and_never_a_single_image(total, count):
    shares = [ranks.share_of(total, count, rank) for rank in range(count)]
    rows = [row for s in shares if s.count for row in range(total)[s.rows]]
    assert rows == list(range(total))
    filled = [s for s in shares if s.count]
    assert [(s.rows.start, s.rows.stop) for s in filled] == parts(total, count)
    assert min(s.count for s in filled) >= min(2, total)
    assert max(s.count for s in filled) - min(s.count for s in filled) <= 1
    assert sum(s.weight for s in shares) == pytest.approx(1)
    for s in shares:
        assert s.largest == shares[0].count
        assert s.count or (s.weight == 0 and s.rows == shares[0].rows)


def test_without_torchrun_nothing_is_exchanged(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", None)
    tensor = torch.rand(3)
    before = tensor.clone()
    with ranks.group() as first:
        assert first()
        ranks.average([tensor], 0.5)
        assert tensor.equal(before)
        assert ranks.total(tensor) is tensor
        assert ranks.gather(tensor) is tensor
        assert ranks.from_first(lambda: 3) == 3
        assert (ranks.rank(), ranks.world_size(), ranks.several()) == (0, 1, False)
        assert ranks.own_share(5) == ranks.Share(slice(0, 5), 5, 1.0, 5)


def test_true_labels_are_those_of_the_share(monkeypatch):
    monkeypatch.setattr(ranks, "own_share", lambda total: ranks.share_of(total, 2, 1))
    labels = torch.arange(21)
    images = torch.zeros(21, 1, 48, 48, dtype=torch.uint8)
    place = {"batch_size": 8, "seed": 3, "epoch": 5}
    split = Split(images, labels, labels + 1000)
    truth = truth_batches(split, **place)
    for _, whole in training_batches(split, augmentation=Augmentation(), **place):
        assert next(truth).equal(whole[(len(whole) + 1) // 2 :] + 1000)


# --- training


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of TRAIN by 1, 2 and 3 ranks."""
    out = tmp_path_factory.mktemp("trained")
    for count in (1, 2, 3):
        words = words_of(TRAIN, data, out, "--save", str(count))
        finish(words, count, out, name=f"{count}-", before=in_double)
    return {count: out / str(count) for count in (1, 2, 3)}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_ranks_train_and_evaluate_as_the_oracle_does(count, data, trained, double):
    state, average, records = train_oracle(data, lambda _: count)
    found = read(trained[count])
    assert_close(found["state_dict"], state)
    assert_close(found["average"], average)
    for record, expected in zip(found["state"]["history"], records, strict=True):
        for name, value in expected.items():
            assert record[name] == pytest.approx(value, abs=1e-9), name


def test_one_process_writes_what_one_process_alone_writes(trained):
    files = {count: sorted(p.name for p in folder.iterdir()) for count, folder in trained.items()}
    assert files[1] == files[2] == files[3]
    logs = [(folder / "log.txt").read_text().splitlines() for folder in trained.values()]
    assert len({len(lines) for lines in logs}) == 1
    out = trained[3].parent
    assert (out / "3-0.log").read_text() != ""
    assert [(out / f"3-{k}.log").read_text() for k in (1, 2)] == ["", ""]


def test_a_run_of_two_processes_stops_at_one_step_and_goes_on_as_one(data, double, tmp_path):
    words = words_of(TRAIN, data, tmp_path)
    children = start([*words, "--save", "run"], 2, tmp_path, before=in_double)
    children[0].wait_for("epoch 2 step 2/")
    children[1].signal(signal.SIGTERM)
    assert [child.wait() for child in children] == [143, 143]
    assert "stopped (SIGTERM); saved" in children[0].printed()
    assert children[1].printed() == ""
    state = read(tmp_path / "run")["state"]
    assert state["sums"][2] == min(12 * state["step"], 77)
    done = 7 * state["epoch"] + state["step"]
    assert 8 < done < 21
    alone = Child([*words, "--resume", "run"], tmp_path / "alone.log", in_double)
    assert alone.wait() == 0, alone.printed()
    expected, average, records = train_oracle(data, lambda step: 2 if step < done else 1)
    found = read(tmp_path / "run")
    assert_close(found["state_dict"], expected)
    assert_close(found["average"], average)
    accuracies = [record["train_accuracy"] for record in found["state"]["history"]]
    assert accuracies == pytest.approx([record["train_accuracy"] for record in records])


# --- the search


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


# --- relabelling, the ensemble and other sets


def test_relabelled_labels_are_counted_once(data, tmp_path):
    checkpoint = weights(tmp_path / "start.pt")
    template = (
        f"relabel_training.py --data {{data}} --checkpoint {checkpoint} --epochs 2 --batch_size 12 "
        "--device cpu --fes False --relabel_threshold {threshold} --model_path {out}"
    )
    counts = {}
    for threshold in ("0", "2"):
        for count in (1, 2):
            name = f"{threshold}-{count}"
            words = template.format(data=data, out=tmp_path, threshold=threshold).split()
            finish([*words, "--save", name], count, tmp_path, name=f"{name}-")
            table = pd.read_csv(tmp_path / name / "changes.csv")
            counts[threshold, count] = table.pivot(index="given", columns="new", values="labels")
    assert counts["0", 1].equals(counts["0", 2]), "nothing changes"
    for count in (1, 2):
        assert (counts["2", count].sum(axis=1) == EACH).all(), "each label counts once"


def test_an_ensemble_and_a_cross_validation_report_the_same_by_one_and_by_two(place, tmp_path):
    commands = {
        "ensemble": f"ensemble.py --data {place}/data --model_names model1,model2 --batch_size 8 "
        f"--model_path {place}/saved_models --device cpu",
        "jaffe": f"test_JAFFE.py --data {place}/data --checkpoint {place}/checkpoint.pt "
        f"--device cpu --model_path {tmp_path}",
    }
    for name, line in commands.items():
        for count in (1, 2):
            finish(
                [*line.split(), "--save", f"{name}{count}"], count, tmp_path, name=f"{name}{count}-"
            )
        folder = place / "saved_models" if name == "ensemble" else tmp_path
        first, second = (
            json.loads((folder / f"{name}{count}" / "summary.json").read_text())["figures"]
            for count in (1, 2)
        )
        for split, figures in first.items():
            assert figures["images"] == second[split]["images"]
            assert figures["accuracy"] == second[split]["accuracy"]


def test_folds_are_tuned_by_two_processes_whole(place, tmp_path):
    line = (
        f"test_CK48.py --data {place}/data --checkpoint {place}/checkpoint.pt --epochs 1 --folds 2 "
        f"--batch_size 16 --limit_batches 2 --device cpu --model_path {tmp_path} --save run"
    )
    finish(line.split(), 2, tmp_path)
    folds = read(tmp_path / "run")["folds"]
    assert len(folds) == 2
    assert all(len(fold["logits"]) == len(fold["test_index"]) for fold in folds)


# --- faults


def errors(children: list[Child]) -> list[str]:
    return [line for c in children for line in c.printed().splitlines() if "error:" in line]


def test_an_error_of_all_ranks_is_told_once(tmp_path):
    words = words_of(TRAIN, tmp_path / "nowhere.csv", tmp_path)
    children = start(words, 2, tmp_path)
    assert [child.wait() for child in children] == [2, 2]
    assert len(errors(children)) == 1
    assert "no FER2013 there" in errors(children)[0]


def test_an_error_of_one_rank_ends_the_others_without_a_word(data, tmp_path):
    words = words_of(TRAIN, data, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meet = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR":
            "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    children = [
        Child(words, tmp_path / "0.log", environment={**meet, "RANK": "0"}),
        Child(
            words_of(TRAIN, tmp_path / "nowhere.csv", tmp_path), tmp_path / "1.log",
            environment={**meet, "RANK": "1"},
        ),
    ]  # fmt: skip
    assert [child.wait() for child in children] == [2, 2]
    assert [line.split(":")[-1] for line in errors(children)] == [
        errors(children)[0].split(":")[-1]
    ]
    assert "nowhere.csv" in errors(children)[0]
    assert "Traceback" not in children[0].printed() + children[1].printed()


def test_a_killed_rank_ends_the_others_with_a_line_that_says_what_to_do(data, tmp_path):
    children = start(words_of(TRAIN, data, tmp_path, "--save", "run"), 3, tmp_path)
    children[0].wait_for("epoch 2 step 1/")
    children[1].signal(signal.SIGKILL)
    assert [child.wait() for child in children] == [2, -signal.SIGKILL, 2]
    assert len(errors(children)) == 1
    assert "another process of this run has ended" in errors(children)[0]
    assert "--resume" in errors(children)[0]
    assert read(tmp_path / "run")["state"]["epoch"] == 1


def test_tools_are_of_one_process(tmp_path):
    children = start(["tools.cells.py", "Auto_FERNet", "--out", str(tmp_path)], 2, tmp_path)
    assert [child.wait() for child in children] == [2, 2]
    assert "start it with python" in errors(children)[0]
    assert len(errors(children)) == 1


# --- torchrun itself


def test_torchrun_passes_a_signal_on_and_the_run_resumes(data, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [*torchrun, *words_of(TRAIN, data, tmp_path), "--save", "run"]
    log = tmp_path / "run" / "log.txt"
    stopped = stop_when(words, "epoch 1 step 2/", signal.SIGTERM, log)
    assert stopped.returncode == 1
    printed = stopped.stderr.read()
    assert "train_FER2013.py: stopped (SIGTERM); saved" in printed
    state = read(tmp_path / "run")["state"]
    assert (state["epoch"], state["step"]) >= (0, 2)
    done = run([*torchrun, *words_of(TRAIN, data, tmp_path), "--resume", "run"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
