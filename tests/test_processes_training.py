"""Several processes that train, against an oracle: one that computes their shards in turn."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rank_runs import TRAIN, accumulate, assert_close, finish, in_double, parts, start, words_of
from runs import LIMIT, SIZE, raise_after, read
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from benchmarks.runs import Child
from data import augment
from data.augment import Augmentation
from data.batches import training_batches
from data.sets import load_set
from data.types import Split
from engine import STEP_STREAM
from genotypes import Auto_FERNet, format_genotype
from model import build_network
from recipe.mixing import mixing
from recipe.schedules import cosine
from utils import derive_seed


def evaluate_plainly(model: torch.nn.Module, split: Split) -> float:
    """Percent of the split's images that are right."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        right = model(augment.to_float(split.images))[0].argmax(1) == split.labels
    return 100 * right.double().mean().item()


def follow_plainly(average: torch.Tensor, value: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The average after one more step; its decay rises to 0.6."""
    decay = min(0.6, (1 + int(steps)) / (10 + int(steps)))
    return decay * average + (1 - decay) * value if value.is_floating_point() else value


def train_oracle(data: Path, count_at: Callable[[int], int]) -> tuple[dict, dict, list[dict]]:
    """TRAIN in one process, step k with the shards of `count_at(k)` processes.

    Returns the states of the network and of the average, and a record an epoch.
    """
    splits = load_set(data).splits
    torch.manual_seed(0)
    model = build_network({**SIZE, "genotype": format_genotype(Auto_FERNet)})
    average = AveragedModel(model, avg_fn=follow_plainly, use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    mix, records, done = mixing(0.4, 0.0, num_classes=7), [], 0
    for epoch in range(3):
        model.train()
        model.drop_path_prob = 0.5 * epoch / 3
        right = 0
        batches = training_batches(
            splits["Training"], batch_size=12, augmentation=Augmentation(), seed=0, epoch=epoch
        )
        for step, (images, labels) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = cosine((epoch + step / 7) / 3, 0.025)
            torch.manual_seed(derive_seed(0, STEP_STREAM, epoch, step))
            targets = labels
            if epoch < 2:
                images, targets = mix(images, labels)
                labels = targets.argmax(1)

            def loss(
                number: int, rows: slice, images=images, targets=targets, labels=labels,
                place=(epoch, step),
            ) -> torch.Tensor:  # fmt: skip
                nonlocal right
                if number > 0:
                    torch.manual_seed(derive_seed(0, STEP_STREAM, *place, number))
                logits, auxiliary = (each.float() for each in model(images[rows]))
                right += int((logits.argmax(1) == labels[rows]).sum())
                main = F.cross_entropy(logits, targets[rows])
                return main + 0.4 * F.cross_entropy(auxiliary, targets[rows])

            shards = parts(len(images), count_at(done))
            losses = [
                ((end - begin) / len(images), lambda k=k, r=slice(begin, end): loss(k, r))
                for k, (begin, end) in enumerate(shards)
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


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of TRAIN by 1, 2 and 3 processes."""
    out = tmp_path_factory.mktemp("trained")
    for count in (1, 2, 3):
        words = words_of(TRAIN, data, out, "--save", str(count))
        finish(words, count, out, name=f"{count}-", before=in_double)
    return {count: out / str(count) for count in (1, 2, 3)}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_train_and_evaluate_as_oracle(count, data, trained, double):
    state, average, records = train_oracle(data, lambda _: count)
    found = read(trained[count])
    assert_close(found["state_dict"], state)
    assert_close(found["average"], average)
    for record, expected in zip(found["state"]["history"], records, strict=True):
        for name, value in expected.items():
            assert record[name] == pytest.approx(value, abs=1e-9), name


def test_only_first_process_writes(trained):
    files = {count: sorted(p.name for p in folder.iterdir()) for count, folder in trained.items()}
    assert files[1] == files[2] == files[3]
    logs = [(folder / "log.txt").read_text().splitlines() for folder in trained.values()]
    # The first of them also tells that it cached the data.
    assert len({sum("cache written" not in line for line in lines) for lines in logs}) == 1
    out = trained[3].parent
    assert (out / "3-0.log").read_text() != ""
    assert [(out / f"3-{k}.log").read_text() for k in (1, 2)] == ["", ""]


def stop_second() -> None:
    in_double()
    raise_after("epoch 2 step 2/", signal.SIGTERM, rank=1)


def test_run_of_two_processes_resumes_as_one(data, double, tmp_path):
    words = words_of(TRAIN, data, tmp_path)
    children = start([*words, "--save", "run"], 2, tmp_path, before=stop_second)
    assert [child.wait(LIMIT) for child in children] == [143, 143]
    assert "stopped (SIGTERM); saved" in children[0].printed()
    assert children[1].printed() == ""
    state = read(tmp_path / "run")["state"]
    assert (state["epoch"], state["step"], state["sums"][2]) == (1, 2, 24)
    alone = Child([*words, "--resume", "run"], tmp_path / "alone.log", in_double)
    assert alone.wait(LIMIT) == 0, alone.printed()
    expected, average, records = train_oracle(data, lambda step: 2 if step < 9 else 1)
    found = read(tmp_path / "run")
    assert_close(found["state_dict"], expected)
    assert_close(found["average"], average)
    accuracies = [record["train_accuracy"] for record in found["state"]["history"]]
    assert accuracies == pytest.approx([record["train_accuracy"] for record in records])
