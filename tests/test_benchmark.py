"""The benchmarks by their real command lines, at sizes that take seconds."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from runs import run

from data import synthetic
from data.augment import Augmentation
from data.synthetic import draw_fer2013
from tools import benchmark
from utils import UserError

TRAIN = "train --init_channels 2 --layers 3 --batch_size 4 --steps 1 --rounds 2 --device cpu"


def figures(output: str) -> dict[str, list[float]]:
    """The table's rows: median and best by name."""
    rows = re.findall(r"^(\S.*?)  +(\d+\.\d\d)  +(\d+\.\d\d)$", output, re.MULTILINE)
    return {name: [float(middle), float(best)] for name, middle, best in rows}


def run_benchmark(flags: list[str]) -> str:
    """The output of the real command line."""
    done = run([sys.executable, "-m", "tools.benchmark", *flags])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("device cpu")
    return done.stdout


def parse(flags: str) -> argparse.Namespace:
    return benchmark.build_parser().parse_args(flags.split())


def test_data_tells_the_first_start_from_the_second_and_scales_the_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_small_table(tmp_path, each=4)
    flags = "data --sample 5 --batch_size 4 --rounds 2 --device cpu --data".split()
    first = run_benchmark([*flags, str(tmp_path)])
    assert list(figures(first)) == [
        "an epoch in augmented batches",
        "an epoch image by image with PIL",
        "a second start, from the cache",
        "the first start, its cache written",
    ]
    assert "an epoch: 28 images in batches of 4" in first
    assert "measured on 5 JPEGs in memory and scaled by 5.60" in first
    assert re.search(r"PIL takes \d+\.\d\d \(.* to .*\) times as long", first)

    args = benchmark.build_parser().parse_args([*flags, str(table), "--limit_images", "6"])
    medians = benchmark.main(args)
    again = capsys.readouterr().out
    assert list(medians) == list(figures(again)) == list(figures(first))[:3]
    assert "an epoch: 6 images" in again


def test_train_compares_the_two_layouts() -> None:
    output = run_benchmark(TRAIN.split())
    found = figures(output)
    assert list(found) == ["channels-last", "default layout"]
    assert all(0 < middle <= best for middle, best in found.values())
    assert "Auto_FERNet, C = 2, 3 cells" in output
    assert re.search(r"channels-last trains \d+\.\d\d \(.* to .*\) times as many", output)


def test_train_measures_each_layout_on_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, torch.Tensor]] = []

    def watched(model: torch.nn.Module, *args: object, **options: object) -> None:
        weight = model.stem[0].weight
        seen.append((weight.stride() == (9, 9, 3, 1), weight.detach().clone()))

    monkeypatch.setattr(benchmark, "train_one_epoch", watched)
    benchmark.measure_train(parse(TRAIN), torch.device("cpu"))
    # A warm-up and two rounds, in turns.
    assert [contiguous for contiguous, _ in seen] == [False, True] * 3
    assert all(weight.equal(seen[0][1]) for _, weight in seen)


def test_relabel_finds_the_same_labels_both_ways() -> None:
    output = run_benchmark("relabel --batch_size 64 --rounds 2 --device cpu".split())
    found = figures(output)
    assert list(found) == ["a batch at once", "a batch label by label"]
    assert "both ways give the same labels" in output
    assert int(re.search(r"of which (\d+) change", output)[1]) > 0


def test_sides_take_turns_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []
    seconds = benchmark.take_turns(3, {name: lambda n=name: calls.append(n) for name in "ab"})
    assert "".join(calls) == "abababab"
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}


def test_figures_follow_from_the_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_table(tmp_path, each=1)

    def turns(rounds: int, sides: dict[str, object]) -> dict[str, list[float]]:
        return dict(zip(sides, ([2.0, 8.0, 4.0], [8.0, 16.0, 12.0], [1.0, 1.0, 1.0]), strict=False))

    monkeypatch.setattr(benchmark, "take_turns", turns)
    cpu = torch.device("cpu")
    # Seven training images, of which two stand for all.
    _, rows, remarks = benchmark.measure_data(parse(f"data --data {tmp_path} --sample 2"), cpu)
    assert [row[1:] for row in rows[:3]] == [(4.0, 2.0), (42.0, 28.0), (1.0, 1.0)]
    assert "10.50 (7.00 to 14.00)" in remarks[-1]
    _, rows, remarks = benchmark.measure_train(parse(TRAIN), cpu)
    assert [row[1:] for row in rows] == [(1.0, 2.0), (4 / 12, 0.5)]
    assert "3.00 (2.00 to 4.00)" in remarks[-1]


def test_synthetic_needs_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"Training": 8, "PublicTest": 1, "PrivateTest": 1}
    small = draw_fer2013(counts=counts)
    monkeypatch.setattr(synthetic, "draw_fer2013", lambda: small)
    args = parse("data --data synthetic --sample 3 --batch_size 4 --rounds 1")
    rows = benchmark.measure_data(args, torch.device("cpu")).rows
    assert [name for name, _, _ in rows][2:] == ["a start, the set drawn"]


def test_both_ways_make_the_same_batches() -> None:
    assert Augmentation(crop=44, flip=True, jitter=0.5) == benchmark.AUGMENTATION
    image = torch.arange(48 * 48).remainder(256).to(torch.uint8).view(1, 48, 48)
    batches = list(benchmark._through_pil([benchmark._encode(image)] * 5, batch_size=2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, 44, 44)] * 2 + [(1, 1, 44, 44)]
    assert all(batch.dtype == torch.float32 for batch in batches)
    assert all(batch.min() >= 0 and batch.max() <= 1 for batch in batches)


@pytest.mark.parametrize(
    "flags, words", [("data --data {}/nothing", "--data"), ("train --device warp", "--device warp")]
)
def test_errors_of_the_users_are_told_as_such(flags: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        benchmark.main(parse(flags.format(tmp_path)))
