"""The six published commands, as written, in a folder as a user has it."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
from runs import ROOT, finish, run, weights

# As published; the tests only add what shortens a run.
PUBLISHED = """\
python search.py --batch_size 24 --batch_increase 8 --learning_rate 0.025
python train_FER2013.py --arch  --batch_size 24 --learning_rate 0.025 --layers 12 --auxiliary_weight 0.4
python relabel_training.py --batch_size 64 --learning_rate 0.001 --relabel_threshold 0.2 --fes True --fes_threshold 0.03 --checkpoint checkpoint
python ensemble.py --model_names model1,model2 --layers 12,12,20  --batch_size 64
python test_CK48.py --batch_size 64 --learning_rate 0.01 --checkpoint checkpoint
python test_JAFFE.py --checkpoint checkpoint
""".splitlines()  # noqa: E501
# Of each script: the label of its run folders, what shortens it, the figures that it gives.
SHORT = "--epochs 1 --limit_batches 1"
TESTS = {"PublicTest", "PrivateTest"}
SCRIPTS = {
    "search.py": ("search", SHORT, {"valid"}),
    "train_FER2013.py": ("train", SHORT, TESTS),
    "relabel_training.py": ("relabel", "--epochs 2 --limit_batches 1", TESTS),
    "ensemble.py": ("ensemble", "", TESTS),
    "test_CK48.py": ("ck48", SHORT, {"CK48"}),
    "test_JAFFE.py": ("jaffe", "", {"JAFFE"}),
}
KEYS = {
    "script", "run", "protocol", "seed", "checkpoints", "genotype", "parameters", "epochs",
    "seconds", "figures", "details", "command", "commit", "machine", "flags",
}  # fmt: skip


@pytest.mark.parametrize("line", PUBLISHED, ids=SCRIPTS)
def test_published_command_runs_as_written(line, place):
    _, script, *flags = shlex.split(line)
    label, shorter, splits = SCRIPTS[script]
    weights(place / "checkpoint")  # exactly so
    words = [sys.executable, script, *flags, *shorter.split()]
    if script == "test_JAFFE.py":
        # Python takes the folder that a link leads to for the script's own.
        (place / script).symlink_to(ROOT / script)
        done = run(words, cwd=place)
        assert done.returncode == 0, done.stderr
        printed = done.stderr
    else:
        printed = finish(words, place / f"{label}.log", place)
    (written,) = (place / "saved_models").glob(f"{label}-*")
    summary = json.loads((written / "summary.json").read_text())
    assert summary.keys() == KEYS
    assert summary["script"] == script
    assert summary["figures"].keys() == splits
    for figures in summary["figures"].values():
        assert figures.keys() >= {"accuracy", "interval95", "images"}
        assert 0 <= figures["accuracy"] <= 100
    assert ("3 depths for 2 models; not used: 20" in printed) == (script == "ensemble.py")


def test_readme_gives_published_commands():
    assert set(PUBLISHED) <= set((ROOT / "README.md").read_text().splitlines())
    assert len(PUBLISHED) == len(SCRIPTS) == 6
