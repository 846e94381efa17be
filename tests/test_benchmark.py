"""The benchmarks by their real command lines, at sizes that take seconds."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from fer2013_files import write_small_table
from runs import run

import architect
from benchmarks import (
    benchmark,
    benchmark_pairs,
    benchmark_parts,
    benchmark_start,
    benchmark_step,
    benchmark_works,
)
from benchmarks.benchmark_pairs import Measurement, Side
from benchmarks.benchmark_works import WORKS
from common import cli
from data import synthetic
from data.augment import Augmentation
from data.synthetic import draw_fer2013
from model_search import OPEN
from utils import UserError

TRAIN = "train --init_channels 2 --layers 3 --batch_size 4 --steps 1 --rounds 2 --device cpu"


def figures(output: str) -> dict[str, list[float]]:
    """The table's rows: median and best by name."""
    rows = re.findall(r"^(\S.*?)  +(\d+\.\d\d)  +(\d+\.\d\d)$", output, re.MULTILINE)
    return {name: [float(middle), float(best)] for name, middle, best in rows}


def run_benchmark(flags: list[str]) -> str:
    """The output of the real command line."""
    done = run([sys.executable, "-m", "benchmarks.benchmark", *flags])
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

    monkeypatch.setattr(benchmark_parts, "train_one_epoch", watched)
    benchmark_parts.measure_train(parse(TRAIN), torch.device("cpu"))
    # A warm-up and two rounds, in turns.
    assert [contiguous for contiguous, _ in seen] == [False, True] * 3
    assert all(weight.equal(seen[0][1]) for _, weight in seen)


def test_relabel_finds_the_same_labels_both_ways() -> None:
    output = run_benchmark("relabel --batch_size 64 --rounds 2 --device cpu".split())
    found = figures(output)
    assert list(found) == ["a batch at once", "a batch label by label"]
    assert "both ways give the same labels" in output
    assert int(re.search(r"of which (\d+) change", output)[1]) > 0


def test_a_start_is_timed_up_to_the_first_step_and_a_training_without_one_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "train_FER2013.py"
    program.write_text("import sys, time; print(sys.argv[1], file=sys.stderr); time.sleep(60)")
    words = [sys.executable, "-u", str(program)]
    benchmark_start.to_first_step([*words, "epoch 1 step 1/9 loss 2"])
    program.write_text("import sys; sys.exit('no data')")
    with pytest.raises(UserError, match="ended before its first step; it said: no data"):
        benchmark_start.to_first_step(words)


def test_sides_take_turns_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []
    seconds = benchmark_parts.take_turns(3, {name: lambda n=name: calls.append(n) for name in "ab"})
    assert "".join(calls) == "abababab"
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}


def test_figures_follow_from_the_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_table(tmp_path, each=1)

    def turns(rounds: int, sides: dict[str, object]) -> dict[str, list[float]]:
        return dict(zip(sides, ([2.0, 8.0, 4.0], [8.0, 16.0, 12.0], [1.0, 1.0, 1.0]), strict=False))

    monkeypatch.setattr(benchmark_parts, "take_turns", turns)
    cpu = torch.device("cpu")
    # Seven training images, of which two stand for all.
    _, rows, remarks = benchmark_parts.measure_data(
        parse(f"data --data {tmp_path} --sample 2"), cpu
    )
    assert [row[1:] for row in rows[:3]] == [(4.0, 2.0), (42.0, 28.0), (1.0, 1.0)]
    assert "10.50 (7.00 to 14.00)" in remarks[-1]
    _, rows, remarks = benchmark_parts.measure_train(parse(TRAIN), cpu)
    assert [row[1:] for row in rows] == [(1.0, 2.0), (4 / 12, 0.5)]
    assert "3.00 (2.00 to 4.00)" in remarks[-1]


def test_synthetic_needs_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"Training": 8, "PublicTest": 1, "PrivateTest": 1}
    small = draw_fer2013(counts=counts)
    monkeypatch.setattr(synthetic, "draw_fer2013", lambda: small)
    args = parse("data --data synthetic --sample 3 --batch_size 4 --rounds 1")
    rows = benchmark_parts.measure_data(args, torch.device("cpu")).rows
    assert [name for name, _, _ in rows][2:] == ["a start, the set drawn"]


def test_both_ways_make_the_same_batches() -> None:
    assert Augmentation(crop=44, flip=True, jitter=0.5) == benchmark_parts.AUGMENTATION
    image = torch.arange(48 * 48).remainder(256).to(torch.uint8).view(1, 48, 48)
    batches = list(benchmark_parts.through_pil([benchmark_parts.encode(image)] * 5, batch_size=2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, 44, 44)] * 2 + [(1, 1, 44, 44)]
    assert all(batch.dtype == torch.float32 for batch in batches)
    assert all(batch.min() >= 0 and batch.max() <= 1 for batch in batches)


@pytest.mark.parametrize(
    "flags, words", [("data --data {}/nothing", "--data"), ("train --device warp", "--device warp")]
)
def test_errors_of_the_users_are_told_as_such(flags: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        benchmark.main(parse(flags.format(tmp_path)))


# ---------------------------------------------------------------- everything in pairs


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> list[str]:
    """Let a side take the next of `seconds` by its name or batch; returns the flags as they come.

    A side holds 2 GB, or 1 GB when it is ours.
    """
    started: list[str] = []
    left = {name: list(values) for name, values in seconds.items()}

    def run_side(flags: str) -> dict[str, object]:
        started.append(flags)
        args = benchmark_step.build_parser().parse_args(shlex.split(flags))
        each = left.get(f"batch {args.batch_size}", left[args.side])
        value = each.pop(0) if len(each) > 1 else each[0]
        return {
            "seconds": [value, 1000.0, value / 2],  # of which the median is the value itself
            "images": args.batch_size,
            "peak_bytes": (2 if args.side == "plain" else 1) * 10**9,
            "base_bytes": 10**8,
            "remarks": ["not compiled"] if args.side == "compiled" else [],
        }

    monkeypatch.setattr(benchmark_pairs, "run_side", run_side)
    return started


def test_sides_of_a_measurement_take_turns_and_ratios_are_of_one_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = pretend(monkeypatch, {"plain": [8.0, 24.0, 8.0], "ours": [4.0, 6.0, 1.0]})
    sides = [Side("plain", "train --side plain"), Side("ours", "train", "plain")]
    told: list[str] = []
    rows = benchmark_pairs.measure(
        Measurement("a step", sides), device="cpu", amp="bf16", rounds=3, report=told.append
    )
    assert started == ["--device cpu --amp bf16 train --side plain",
                       "--device cpu --amp bf16 train"] * 3  # fmt: skip
    assert told[3] == "cpu: a step, ours, round 2 of 3"
    plain, ours = rows
    assert plain["times"] is plain["memory"] is None
    assert ours["seconds"] == {"median": 4.0, "least": 1.0, "greatest": 6.0}
    assert ours["images_per_second"] == {"median": 6.0, "least": 4.0, "greatest": 24.0}
    # 8 / 4, 24 / 6, 8 / 1: the ratio of the medians would be 2.
    assert ours["times"] == {"median": 4.0, "least": 2.0, "greatest": 8.0}
    assert ours["memory"]["median"] == 0.5
    assert benchmark_pairs.table_rows(rows) == [
        ["a step", "cpu", "plain", "24", "8.00", "3.00", "2.00", "", "", ""],
        ["a step", "cpu", "ours", "24", "4.00", "6.00", "1.00", "plain", "4.00 (2.00 to 8.00)",
         "0.50"],
    ]  # fmt: skip


@pytest.mark.parametrize("short", [True, False])
def test_the_plan_covers_the_issue_and_every_side_is_a_command_line(short: bool) -> None:
    plan = benchmark_pairs.plan(short=short, compile_too=True, evaluation_batch=96)
    parser = benchmark_step.build_parser()
    works = set()
    for measurement in plan:
        names = [side.name for side in measurement.sides]
        assert len(set(names)) == len(names)
        assert names[:2] == ["plain", "ours"]
        for side in measurement.sides:
            args = parser.parse_args(shlex.split(side.flags))
            works.add((args.work, args.decisions))
            assert args.side == (side.name if side.name in ("plain", "compiled") else "ours")
            assert side.against in (None, *names)
    assert works == {("search", 0), ("search", 4), ("search", 8), ("decided", 0), ("train", 0),
                     ("evaluate", 0), ("data", 0), ("relabel", 0)}  # fmt: skip
    without = benchmark_pairs.plan(short=short, compile_too=False, evaluation_batch=96)
    assert not any(side.name == "compiled" for each in without for side in each.sides)


def test_the_published_sizes_are_those_of_the_scripts() -> None:
    parser = benchmark_step.build_parser()
    for each in benchmark_pairs.plan(short=False, compile_too=False, evaluation_batch=96):
        args = parser.parse_args(shlex.split(each.sides[0].flags))
        sizes = (args.init_channels, args.layers, args.batch_size)
        if args.work in ("search", "train", "evaluate"):
            assert sizes == ((16, 8, 24) if args.work == "search" else (36, 12, 24))


def test_all_is_what_runs_without_a_name_and_writes_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Evaluation is fastest at 96: 48 images a second, where the others have fewer.
    seconds = {"plain": [8.0], "ours": [4.0], "compiled": [2.0], "batch 48": [2.0],
               "batch 96": [2.0], "batch 192": [8.0]}  # fmt: skip
    pretend(monkeypatch, seconds)
    out = tmp_path / "new" / "found.json"
    flags = f"--compile --rounds 2 --device cpu --out {out}".split()
    argv = benchmark.with_command(flags)
    assert argv == ["all", *flags]
    assert cli.run(benchmark.main, benchmark.build_parser(), argv) == 0

    found = json.loads(out.read_text())
    assert found["rounds"] == 2
    assert found["flags"] == {"short": False, "compile": True, "amp": "off"}
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", found["commit"])
    assert found["processor"]
    assert found["machine"][0].startswith("device cpu")
    assert f"torch {torch.__version__}" in found["machine"][0]
    rows = {(row["measurement"], row["side"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 16
    assert rows["evaluation", "ours"]["images"] == 96
    assert rows["evaluation", "ours"]["times"]["median"] == 16.0
    assert rows["training step", "compiled"]["times"]["median"] == 4.0
    assert rows["search step, all decided", "the fixed network"]["against"] == "ours"
    assert all(len(row["rounds"]) == 2 for row in found["rows"])

    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.endswith("4.00 (4.00 to 4.00)    0.50")]
    assert [line.split("  ")[0] for line in table] == ["training step"]
    assert printed.count("training step, compiled: not compiled\n") == 1
    assert f"written: {out}" in printed


def test_a_side_that_fails_ends_it_in_one_line_and_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Measurement("bad", [Side("plain", "relabel --side plain --batch_size none")])
    plans = [Measurement("good", [Side("plain", "relabel --side plain")]), bad]
    monkeypatch.setattr(benchmark_pairs, "plan", lambda **_: plans)
    monkeypatch.setattr(benchmark_pairs, "best_evaluation_batch", lambda *_, **__: 24)
    real = benchmark_pairs.run_side
    pretend(monkeypatch, {"plain": [1.0]})
    faked = benchmark_pairs.run_side
    monkeypatch.setattr(
        benchmark_pairs, "run_side", lambda flags: (real if "none" in flags else faked)(flags)
    )
    out = tmp_path / "found.json"
    argv = f"all --short --device cpu --out {out}".split()
    assert cli.run(benchmark.main, benchmark.build_parser(), argv) == 2
    assert [row["measurement"] for row in json.loads(out.read_text())["rows"]] == ["good"]
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "relabel --side plain --batch_size none" in line
    assert "ended with status 2, expected 0; it said:" in line
    assert "invalid positive_int value: 'none'" in line


def test_a_side_is_really_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    # What this process once held is no part of a side's peak.
    torch.ones(2**28).sum()
    flags = "train --init_channels 4 --layers 3 --batch_size 4 --steps 1"
    sides = [Side("plain", f"{flags} --side plain"), Side("ours", flags, "plain")]
    rows = benchmark_pairs.measure(
        Measurement("a step", sides), device="cpu", amp="off", rounds=1, report=lambda _: None
    )
    for row in rows:
        (found,) = row["rounds"]
        assert len(found["seconds"]) == 1
        assert 0 < found["base_bytes"] < found["peak_bytes"] < 3 * 2**29
        assert found["images"] == 4
        assert found["remarks"] == []
    assert rows[1]["times"]["median"] > 0


@pytest.mark.parametrize("side", ["plain", "ours"])
@pytest.mark.parametrize("work", WORKS)
def test_every_work_runs_on_both_sides(
    work: str, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--init_channels 2 --layers 3 --batch_size 2 --sample 5 --steps 2 --device cpu"
    args = benchmark_step.build_parser().parse_args([work, "--side", side, *flags.split()])
    found = benchmark_step.main(args)
    assert json.loads(capsys.readouterr().out) == found
    assert len(found["seconds"]) == 2
    assert min(found["seconds"]) > 0
    assert found["images"] == (5 if work == "data" else 2)


def test_what_cannot_be_compiled_is_not_measured_as_if_it_were() -> None:
    args = benchmark_step.build_parser().parse_args(["evaluate", "--side", "compiled"])
    with pytest.raises(UserError, match="expected train or decided"):
        benchmark_step.main(args)


def test_the_fixed_network_beside_the_decided_supernet_has_its_genotype(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = benchmark_step.build_parser()
    plan = benchmark_pairs.plan(short=True, compile_too=False, evaluation_batch=8)
    decided = next(each for each in plan if each.title == "search step, all decided")
    supernets, genotypes = [], []
    build_supernet, network = benchmark_works.build_supernet, benchmark_works.Network
    monkeypatch.setattr(
        benchmark_works, "build_supernet", lambda setup: keep(supernets, build_supernet(setup))
    )
    monkeypatch.setattr(
        benchmark_works, "Network", lambda *args: keep(genotypes, args) and network(*args)
    )
    for side in decided.sides:
        args = parser.parse_args([*shlex.split(side.flags), "--device", "cpu"])
        args.batch_size, args.layers, args.init_channels = 2, 3, 2
        benchmark_step.main(args)
    plain, ours, of_network = supernets
    assert plain.states == ours.states == of_network.states
    assert not any(OPEN in states for states in ours.states.values())
    scores = architect.score_cells(ours, {"normal": [], "reduce": []}, use_history=False)
    ((*_, genotype),) = genotypes
    assert genotype == architect.derive_genotype(ours, scores)


def keep(kept: list[object], new: object) -> object:
    """`new`, after it was added to `kept`."""
    kept.append(new)
    return new
