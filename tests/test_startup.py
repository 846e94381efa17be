"""What is set before torch is loaded: how threads wait, unless the user has set it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
from runs import ROOT

from common import startup

SCRIPTS = ["search", "train_FER2013", "relabel_training", "ensemble", "test_CK48", "test_JAFFE"]


@pytest.mark.parametrize("own, expected", [
    ({}, "1000 False"),
    ({"OMP_WAIT_POLICY": "passive"}, "None False"),
    ({"GOMP_SPINCOUNT": "7"}, "7 False"),
    ({"OMP_NUM_THREADS": "1"}, "1000 False"),
])  # fmt: skip
def test_own_settings_are_kept(own, expected):
    code = (
        "import common.startup, os, sys; "
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("OMP_", "GOMP_", "KMP_"))}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, env={**clean, **own}, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("name", [*SCRIPTS, "tools/__init__", "benchmarks/__init__"])
def test_scripts_set_it_before_they_import_torch(name):
    imports = [
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.parse((ROOT / f"{name}.py").read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    foreign = [each for each in imports if each.split(".")[0] not in sys.stdlib_module_names]
    assert foreign[0] == "common.startup"


def test_line_of_the_log(monkeypatch):
    for name in (*startup._SETTINGS, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(startup.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(startup.os, "getloadavg", lambda: (0.5, 0.0, 0.0), raising=False)
    assert startup.describe_threads(4) == "waiting threads: as OpenMP chooses"
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setattr(startup.os, "getloadavg", lambda: (4.1, 0.0, 0.0), raising=False)
    line = "waiting threads: GOMP_SPINCOUNT=1000"
    advice = "; load 4.1 on 4 cores: OMP_NUM_THREADS=1 may be faster"
    assert startup.describe_threads(4) == line + advice
    assert startup.describe_threads(1) == line
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert startup.describe_threads(4) == line
