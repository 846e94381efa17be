"""tools.compare: means over seeds, folds that were jobs, refused runs, differences, the picture."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from runs import here, weights

import test_CK48
from data.synthetic import cross, writers
from runtime.errors import UserError
from runtime.run import Progress
from tools import compare
from utils import load_checkpoint, save_checkpoint

ARGS = {"script": "train_FER2013.py", "learning_rate": 0.1, "data": "here", "seed": 0}


def summary(seed: int = 0, accuracy: float = 60.0, **changes) -> dict:
    figures = {"PublicTest": {"accuracy": accuracy, "images": 7},
               "PrivateTest": {"accuracy": accuracy + 1, "images": 7}}  # fmt: skip
    return {"script": "train_FER2013.py", "protocol": "clean", "seed": seed, "genotype": "g",
            "parameters": 9, "epochs": 2, "seconds": 120.0, "figures": figures, "details": {},
            **changes}  # fmt: skip


def run_folder(folder: Path, found: dict, curve: Sequence[float] = (), **args) -> str:
    """A run that has ended; `curve`: PublicTest accuracy after each epoch."""
    folder.mkdir()
    records = [{"epoch": epoch, "PublicTest_accuracy": value, "PrivateTest_accuracy": value + 1}
               for epoch, value in enumerate(curve, 1)] or [{"epoch": 1}]  # fmt: skip
    details = {"last_epoch": records[-1], **found["details"]}
    (folder / "summary.json").write_text(json.dumps({**found, "details": details}))
    state = Progress(epoch=len(records), history=records).to_dict()
    content = {"args": {**ARGS, **args}, "state": state}
    save_checkpoint(folder / "checkpoint.pt", "training" if curve else "search", content)
    return str(folder)


def compared(*argv: str) -> dict:
    return compare.main(compare.build_parser().parse_args(list(argv)))


# --- one group


def test_mean_deviation_and_interval(tmp_path, capsys):
    runs = [run_folder(tmp_path / f"a-{seed}", summary(seed, value), data=f"at {seed}")
            for seed, value in enumerate((60.0, 62.0, 67.0))]  # fmt: skip
    row = compared(*runs, *runs, "--out", str(tmp_path / "out"))["groups"]["a"]
    assert row["PublicTest"] == 63.0
    assert row["PublicTest_deviation"] == pytest.approx(13**0.5)
    # 4.303 is the 97.5 % quantile of Student's t with two degrees of freedom.
    assert row["PublicTest_interval95"] == pytest.approx(4.303 * (13 / 3) ** 0.5, rel=1e-3)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[-4:] == ["seeds", "0", "1", "2"]
    assert printed[3].split() == "PrivateTest 64.00 3.61 8.96 61.00 63.00 68.00".split()
    (written,) = csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines())
    assert (written["group"], float(written["PublicTest"])) == ("a", 63.0)
    assert not (tmp_path / "out" / "compare.png").exists()


def test_unfinished_runs_are_listed_and_searches_may_differ(tmp_path, capsys):
    searches = [run_folder(tmp_path / f"s{seed}", summary(seed, genotype=g, script="search.py"))
                for seed, g in enumerate("gh")]  # fmt: skip
    assert compared(*searches)["groups"]["s"]["seeds"] == "0 1"
    whole = run_folder(tmp_path / "a_1", summary())
    (tmp_path / "a_2").mkdir()
    found = compared(whole, str(tmp_path / "a_2"), str(tmp_path / "a_3"))
    assert found["groups"]["a"]["PublicTest"] == 60.0
    assert found["missing"] == [f"{tmp_path}/a_{k}: no summary.json" for k in (2, 3)]
    printed = capsys.readouterr().out
    assert f"missing: {tmp_path}/a_2" in printed
    assert "nan" not in printed
    with pytest.raises(UserError, match=r"no summary\.json in any of 1 runs"):
        compared(str(tmp_path / "a_2"))


@pytest.mark.parametrize("changes, args, told", [
    ({}, {"learning_rate": 0.2}, "--learning_rate 0.2, but"),
    ({"epochs": 3}, {}, "epochs 3, but"),
    ({"genotype": "h"}, {}, "genotype h, but"),
    ({"script": "search.py"}, {}, "script search.py"),
    ({"seed": 0}, {}, "seed 0, as"),
    ({"details": {"fold": 2, "folds": 9}}, {}, "fold"),
    ({"figures": {"valid": {"accuracy": 1.0, "images": 7}}}, {}, "images"),
])  # fmt: skip
def test_different_settings_are_refused(changes, args, told, tmp_path, capsys):
    runs = [run_folder(tmp_path / "a-1", summary()),
            run_folder(tmp_path / "a-2", summary(1) | changes, **args)]  # fmt: skip
    assert here(compare, runs) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "a-2") in line
    assert told in line


@pytest.mark.parametrize("text", [
    "[]", "[" * 100_000, '{"figures": {"a": {"accuracy": NaN}}}',
    json.dumps(summary() | {"seed": "x"}), json.dumps(summary() | {"figures": {}}),
    json.dumps(summary(accuracy=10**400)),
])  # fmt: skip
def test_invalid_summary_is_one_line(text, tmp_path, capsys):
    (tmp_path / "summary.json").write_text(text)
    assert here(compare, [str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "summary.json: " in line
    assert "expected the summary of a run" in line


def test_folds_as_jobs_match_whole_run(tmp_path, capsys):
    ck48 = cross.draw_ck48(subjects=12, sequences=24)
    writers.write_ck48(ck48, tmp_path / "CK+48")
    weights(tmp_path / "w.pt")
    flags = ["--data", str(tmp_path), "--checkpoint", str(tmp_path / "w"), "--folds", "2",
             "--epochs", "1", "--limit_batches", "1", "--batch_size", "8", "--device", "cpu",
             "--model_path", str(tmp_path)]  # fmt: skip

    def test_ck48(*more: str) -> int:
        return here(test_CK48, [*flags, *more])

    assert test_ck48("--save", "whole") == 0
    for fold in ("1", "2"):
        assert test_ck48("--fold", fold, "--save", f"fold-{fold}") == 0
    capsys.readouterr()
    jobs = [str(tmp_path / f"fold-{fold}") for fold in (1, 2)]
    whole, merged = compared(str(tmp_path / "whole")), compared(*jobs)
    assert merged["groups"]["fold"]["CK48"] == pytest.approx(whole["groups"]["whole"]["CK48"])
    assert merged["missing"] == []
    results = [load_checkpoint(tmp_path / name / "checkpoint.pt", ["folds"])["folds"]
               for name in ("whole", "fold-1", "fold-2")]  # fmt: skip
    for one, other in zip(results[0], results[1] + results[2], strict=True):
        assert one["logits"].equal(other["logits"])
    assert compared(jobs[1])["missing"] == ["fold, seed 0: fold 1 of 2"]
    weights(tmp_path / "w.pt", seed=1)
    assert test_ck48("--fold", "2", "--save", "fold-3") == 0
    with pytest.raises(UserError, match=r"fold-3: from other weights than .*fold-1"):
        compared(jobs[0], str(tmp_path / "fold-3"))
    for wrong in (["--fold", "3"], ["--fold", "1", "--mode", "evaluate"]):
        assert test_ck48(*wrong) == 2
        assert wrong[1] in capsys.readouterr().err


def test_files_of_several_runs_are_refused(tmp_path, capsys):
    run = run_folder(tmp_path / "a", summary(), (30.0, 40.0))
    other = run_folder(tmp_path / "b", summary(), (30.0, 41.0))
    weights(tmp_path / "a" / "best_val_weights.pt")
    assert here(compare, [run]) == 2
    assert "best_val_weights.pt: ValueError: of another run" in capsys.readouterr().err
    # What a run of before this check left, that went on after its end.
    (tmp_path / "b" / "summary.json").write_text((tmp_path / "a" / "summary.json").read_text())
    assert here(compare, [other]) == 2
    assert "summary.json is of another run, or of before" in capsys.readouterr().err


# --- several groups


def test_shortened_runs_and_names_of_any_letters(tmp_path, capsys, recwarn):
    part = summary(figures={"PublicTest": {"accuracy": 60.0, "images": 640, "of": 3589}})
    names = [os.fsdecode(b"\xff"), "表情" + 100 * "x", "b"]
    runs = [run_folder(tmp_path / f"{name}-{seed}", part | {"seed": seed}, (1.0, 2.0),
                       limit_batches=10) for name in names for seed in (0, 1)]  # fmt: skip
    assert here(compare, [*runs, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "b: 640 of 3,589 images of PublicTest\n" in printed.out
    assert (printed.err, recwarn.list) == ("", [])
    assert "\n\\udcff," in (tmp_path / "compare.csv").read_text("utf-8")


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two groups: the second is better by 2, 3 and 7 points."""
    paper = [run_folder(tmp_path / f"paper_{seed}", summary(seed, value), (30.0, value))
             for seed, value in enumerate((40.0, 60.0, 50.0))]  # fmt: skip
    ema = [run_folder(tmp_path / f"$\\frac$_{seed}", summary(seed, value), (34.0, value), ema=0.9)
           for seed, value in enumerate((42.0, 63.0, 57.0))]  # fmt: skip
    return paper + ema


def test_differences_by_seed(runs, tmp_path, capsys, recwarn):
    found = compared(*runs, *runs, "--out", str(tmp_path / "out"))["groups"]
    paper, ema = found.values()
    assert ema["seeds"] == "0 1 2"
    assert ema["PublicTest"] == pytest.approx(54.0)
    assert ema["PublicTest_difference"] == pytest.approx(4.0)
    # The variance of 2, 3 and 7 is 7; 4.303 is the quantile of t for two degrees of freedom.
    expected = pytest.approx(4.303 * (7 / 3) ** 0.5, rel=1e-3)
    assert ema["PublicTest_difference_interval95"] == expected
    assert paper["PublicTest_difference"] != paper["PublicTest_difference"], "NaN"
    assert (ema["settings"], ema["minutes"]) == ("--ema 0.9", 2.0)
    printed = capsys.readouterr().out
    assert "+4.00 ± 6.57" in printed
    assert "+4.00 ± 6.57*" not in printed
    assert "$\\frac$: --ema 0.9\n" in printed
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    assert [row["group"] for row in rows] == ["paper", "$\\frac$"]
    assert float(rows[1]["PrivateTest_difference"]) == pytest.approx(4.0)
    assert rows[0]["PrivateTest_difference"] == ""
    with Image.open(tmp_path / "out" / "compare.png") as picture:
        assert picture.width > 1000
    assert not recwarn.list


def test_star_marks_interval_without_zero(tmp_path, capsys):
    runs = [run_folder(tmp_path / f"{name}{seed}", summary(seed, 40.0 + seed + more))
            for name, more in (("a-", 0.0), ("b-", 3.0)) for seed in (0, 1, 2)]  # fmt: skip
    found = compared(*runs, run_folder(tmp_path / "c-7", summary(7, 90.0)))["groups"]
    assert "+3.00 ± 0.00*" in capsys.readouterr().out
    # No seed in common with the first.
    assert found["c"]["PublicTest_difference"] != found["c"]["PublicTest_difference"], "NaN"


def test_groups_of_other_sets_are_refused(tmp_path):
    other = summary(figures={"CK48": {"accuracy": 1.0, "images": 7}})
    runs = [run_folder(tmp_path / "a", summary()), run_folder(tmp_path / "b", other)]
    with pytest.raises(UserError, match=r"b: figures of CK48, but .*a has PublicTest, PrivateTest"):
        compared(*runs)


@pytest.mark.parametrize("spoil, told", [
    (lambda run: (run / "checkpoint.pt").write_bytes(b""), "checkpoint.pt"),
    (lambda run: save_checkpoint(run / "checkpoint.pt", "training", {"args": ARGS, "state": {}}),
     "expected the checkpoint of a run"),
])  # fmt: skip
def test_other_checkpoints_are_refused(spoil, told, runs, tmp_path, capsys):
    spoil(tmp_path / "paper_1")
    assert here(compare, runs) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "paper_1") in line
    assert told in line


def test_picture(runs, tmp_path, recwarn):
    def panels(*folders: str) -> list:
        groups = compare.read_groups(map(Path, folders))
        rows = {group.name: compare.table_row(group, groups[0]) for group in groups}
        figure = compare.draw_comparison(groups, rows, tmp_path / "c.png")
        return [] if figure is None else figure.axes

    left, right = panels(*runs)
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["paper", "$\\frac$"]
    assert list(left.lines[0].get_ydata()) == [30.0, 50.0]
    assert len(right.containers) == 2
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["$\\frac$"]
    apart = [run_folder(tmp_path / f"{name}_{seed}", summary(seed), curve)
             for name, seed, curve in (("x", 1, [1.0]), ("y", 2, [2.0]), ("z", 1, []))]  # fmt: skip
    assert len(panels(apart[0], apart[1])) == 1, "no seed in common"
    assert len(panels(apart[2], apart[0])) == 2
    assert not recwarn.list
