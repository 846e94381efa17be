"""tools.collect: means over seeds, folds that were jobs, and refused runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import weights

import test_CK48
from common import cli
from data.synthetic import cross, writers
from runtime.errors import UserError
from tools import collect
from utils import load_checkpoint, save_checkpoint

ARGS = {"script": "train_FER2013.py", "learning_rate": 0.1, "data": "here", "seed": 0}


def summary(seed: int = 0, accuracy: float = 60.0, **changes) -> dict:
    figures = {"PublicTest": {"accuracy": accuracy, "images": 7},
               "PrivateTest": {"accuracy": accuracy + 1, "images": 7}}  # fmt: skip
    return {"script": "train_FER2013.py", "protocol": "clean", "seed": seed, "genotype": "g",
            "parameters": 9, "epochs": 2, "figures": figures, "details": {}, **changes}  # fmt: skip


def run_folder(folder: Path, found: dict, **args) -> str:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(found))
    save_checkpoint(folder / "checkpoint.pt", "training", {"args": {**ARGS, **args}})
    return str(folder)


def collected(*argv: str) -> dict:
    return collect.main(collect.build_parser().parse_args(list(argv)))


def test_mean_deviation_and_interval(tmp_path, capsys):
    runs = [run_folder(tmp_path / str(seed), summary(seed, value), data=f"at {seed}")
            for seed, value in enumerate((60.0, 62.0, 67.0))]  # fmt: skip
    found = collected(*runs, "--out", str(tmp_path / "c.json"))
    public = found["figures"]["PublicTest"]
    assert public["mean"] == 63.0
    assert public["deviation"] == pytest.approx(13**0.5)
    # 4.303 is the 97.5 % quantile of Student's t with two degrees of freedom.
    assert public["interval95"] == pytest.approx(4.303 * (13 / 3) ** 0.5, rel=1e-3)
    assert found["figures"]["PrivateTest"]["seeds"] == {"0": 61.0, "1": 63.0, "2": 68.0}
    printed = capsys.readouterr().out
    assert "63.00" in printed
    assert "8.96" in printed
    assert json.loads((tmp_path / "c.json").read_text())["figures"] == found["figures"]


def test_unfinished_runs_are_listed_and_searches_may_differ(tmp_path, capsys):
    searches = [run_folder(tmp_path / g, summary(seed, genotype=g, script="search.py"))
                for seed, g in enumerate("gh")]  # fmt: skip
    assert len(collected(*searches)["figures"]["PublicTest"]["seeds"]) == 2
    whole = run_folder(tmp_path / "a", summary())
    (tmp_path / "b").mkdir()
    found = collected(whole, str(tmp_path / "b"), str(tmp_path / "c"))
    assert found["figures"]["PublicTest"]["mean"] == 60.0
    assert found["figures"]["PublicTest"]["interval95"] is None
    assert found["missing"] == [f"{tmp_path}/{name}: no summary.json" for name in "bc"]
    assert f"missing: {tmp_path}/b" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no summary\.json in any of 1 runs"):
        collected(str(tmp_path / "b"))


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
    runs = [run_folder(tmp_path / "a", summary()),
            run_folder(tmp_path / "b", summary(1) | changes, **args)]  # fmt: skip
    assert cli.run_script(collect.main, collect.build_parser(), runs) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "b") in line
    assert told in line


@pytest.mark.parametrize(
    "text",
    ["[]", "[" * 100_000, '{"figures": {"a": {"accuracy": NaN}}}',
     json.dumps(summary() | {"seed": "x"}), json.dumps(summary() | {"figures": {}}),
     json.dumps(summary(accuracy=10**400)), json.dumps(summary(details={"fold": 3, "folds": 2})),
     json.dumps(summary(details={"fold": 1, "folds": 10**8})),
     json.dumps(summary() | {"figures": {"\ud800": {"accuracy": 1, "images": 7}}})],
)  # fmt: skip
def test_invalid_summary_is_one_line(text, tmp_path, capsys):
    (tmp_path / "summary.json").write_text(text)
    assert cli.run_script(collect.main, collect.build_parser(), [str(tmp_path)]) == 2
    line = capsys.readouterr().err.strip()
    assert "summary.json: " in line
    assert "expected the summary of a run" in line
    assert line.isprintable()


def test_folds_as_jobs_match_whole_run(tmp_path, capsys):
    ck48 = cross.draw_ck48(subjects=12, sequences=24)
    writers.write_ck48(ck48, tmp_path / "CK+48")
    weights(tmp_path / "w.pt")
    flags = ["--data", str(tmp_path), "--checkpoint", str(tmp_path / "w"), "--folds", "2",
             "--epochs", "1", "--limit_batches", "1", "--batch_size", "8", "--device", "cpu",
             "--model_path", str(tmp_path)]  # fmt: skip

    def test_ck48(*more: str) -> int:
        return cli.run_script(test_CK48.main, test_CK48.build_parser(), [*flags, *more])

    assert test_ck48("--save", "whole") == 0
    for fold in ("1", "2"):
        assert test_ck48("--fold", fold, "--save", f"fold-{fold}") == 0
    capsys.readouterr()
    jobs = [str(tmp_path / f"fold-{fold}") for fold in (1, 2)]
    whole, merged = collected(str(tmp_path / "whole")), collected(*jobs)
    assert merged["figures"]["CK48"]["mean"] == pytest.approx(whole["figures"]["CK48"]["mean"])
    assert merged["missing"] == []
    results = [load_checkpoint(tmp_path / name / "checkpoint.pt", ["folds"])["folds"]
               for name in ("whole", "fold-1", "fold-2")]  # fmt: skip
    for one, other in zip(results[0], results[1] + results[2], strict=True):
        assert one["logits"].equal(other["logits"])
    assert collected(jobs[1])["missing"] == ["seed 0: fold 1 of 2"]
    weights(tmp_path / "w.pt", seed=1)
    assert test_ck48("--fold", "2", "--save", "other") == 0
    with pytest.raises(UserError, match=r"other: from other weights than .*fold-1"):
        collected(jobs[0], str(tmp_path / "other"))
    for wrong in (["--fold", "3"], ["--fold", "1", "--mode", "evaluate"]):
        assert test_ck48(*wrong) == 2
        assert wrong[1] in capsys.readouterr().err
