"""The speed benchmark: its cases run, and its figures follow from the measured seconds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sgas
from benchmarks import cases, speed
from benchmarks.cases import ALL_CASES, CASES, GPU_CASES, Setup
from common.cli import run_script
from model_search import OPEN
from runtime.errors import UserError
from runtime.run import autocast

CPU = torch.device("cpu")
VARIANTS = [(case, v) for case in ALL_CASES for v in ALL_CASES[case].variants]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "SHORT", "--init_channels 4 --layers 3 --batch_size 2".split())
    monkeypatch.setattr(cases, "SHORT_SAMPLE", 5)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)


@pytest.mark.parametrize("case, variant", VARIANTS)
def test_variant_runs(case: str, variant: str) -> None:
    found = speed.measure(case, variant, short=True, device="cpu", steps=2)
    assert len(found["seconds"]) == 2
    relabelled = cases.BATCHES * cases.LABELS
    assert found["images"] == {"augmentation": 5, "relabelling": relabelled}.get(case, 2)
    assert found["peak_bytes"] > 0


def test_published_sizes_are_used() -> None:
    setup = Setup("ours", False, CPU, autocast(CPU, "off"))
    for script, sizes in (("search", (16, 8, 24)), ("train", (36, 12, 24))):
        args = setup.args(script)
        assert (args.init_channels, args.layers, args.batch_size) == sizes


def test_fixed_network_has_the_genotype_of_the_supernet(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup("fixed network", True, CPU, autocast(CPU, "off"))
    supernet = cases.build_supernet(setup.args("search"), cases.DECISIONS)
    assert not any(OPEN in states for states in supernet.states.values())
    built, network = [], cases.Network
    monkeypatch.setattr(cases, "build_supernet", lambda *_: supernet)
    monkeypatch.setattr(cases, "Network", lambda *args: built.append(args) or network(*args))
    CASES["search step, all edges decided"].build(setup)
    scores = sgas.score_cells(supernet, {"normal": [], "reduce": []}, use_history=False)
    assert built[0][-1] == sgas.derive_genotype(supernet, scores)


def test_ratios_are_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"plain": [8.0, 24.0, 8.0], "ours": [4.0, 6.0, 1.0]}
    started = []

    def apart(case: str, variant: str, **_options: object) -> dict:
        started.append(variant)
        value = seconds[variant].pop(0)
        peak = 2 if variant == "plain" else 1
        return {"seconds": [value, 99.0, 0.0], "images": 24, "peak_bytes": peak * 10**9}

    monkeypatch.setattr(speed, "measure_apart", apart)
    rows = speed.measure_case("training step", ["plain", "ours"], 3)
    assert started == ["plain", "ours"] * 3
    # 8 / 4, 24 / 6 and 8 / 1, whereas the ratio of the medians is 2.
    assert speed.table_rows(rows) == [
        ["training step", "plain", "24", "8.00", "3.00", "2.00", "", "", ""],
        ["training step", "ours", "24", "4.00", "6.00", "1.00", "plain", "4.00 (2.00 to 8.00)",
         "0.50"],
    ]  # fmt: skip


def test_command_writes_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "speed.json"
    words = f"--short --only relabelling --rounds 1 --steps 1 --device cpu --out {out}".split()
    assert run_script(speed.main, speed.build_parser(), words) == 0
    found = json.loads(out.read_text())
    assert [row["variant"] for row in found["rows"]] == ["plain", "ours"]
    assert all(len(row["rounds"]) == 1 for row in found["rows"])
    printed = capsys.readouterr().out
    assert all(column in printed for column in speed.COLUMNS)
    assert f"written: {out}" in printed


def test_gpu_suite_in_small_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    words = f"--gpu --short --device cpu --steps 1 --only batch --out {out}".split()
    assert run_script(speed.main, speed.build_parser(), words) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {(row["case"], row["variant"]) for row in rows} == {
        (case, v) for case in GPU_CASES if "batch" in case for v in GPU_CASES[case].variants
    }
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert table[0] == f"| {' | '.join(speed.COLUMNS)} |"
    assert [line.split(" | ")[1] for line in table[2:5]] == ["fp32", "bf16", "bf16, compiled"]
    assert {line.count("|") for line in table} == {len(speed.COLUMNS) + 1}


def test_gpu_suite_skips_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started, clock = [], iter(range(0, 1000, 60))

    def measured(case: str, variant: str) -> dict:
        started.append((case[-3:], variant))
        if "512" in case and variant == "fp32":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return {"seconds": [1.0], "images": 1, "peak_bytes": 1}

    monkeypatch.setattr(speed, "measure", measured)
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    names = [f"training step, batch {size}" for size in (24, 64, 512)]
    rows = [row for rows in speed.measure_gpu(names, minutes=9) for row in rows]
    # What is compiled comes last, 64 and 512 first; the ninth minute begins before the ninth.
    plain = [(size, variant) for size in (" 24", " 64", "512") for variant in ("fp32", "bf16")]
    assert started == [*plain, (" 64", "bf16, compiled"), ("512", "bf16, compiled")]
    assert len(rows) == len(started) - 1
    assert speed.table_rows(rows)[4][6:] == ["", "", ""]  # without what it is compared with
    printed = capsys.readouterr().out
    assert "batch 512, fp32: skipped, out of memory" in printed
    assert "batch 24, bf16, compiled: skipped, as 9 minutes have passed" in printed


def test_wrong_flags_are_errors(tmp_path: Path) -> None:
    for flag in ("--only", "--device"):
        words = [flag, "warp", "--out", str(tmp_path / "x.json")]
        with pytest.raises(UserError, match=flag):
            speed.main(speed.build_parser().parse_args(words))
