"""What is set before torch is loaded: how threads wait, unless the user has set it."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from runtime import startup
from runtime.logs import describe_machine


@pytest.fixture
def unset(monkeypatch):
    for name in startup.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_use_of_the_cpu(tmp_path, monkeypatch):
    path = tmp_path / "stat"
    path.write_text("cpu  100 0 0 500 10 0 0 0 0 0\ncpu0 1 1 1 1\n")
    later = "cpu  130 0 0 560 20 0 0 0 0 0\n"
    monkeypatch.setattr(startup.time, "sleep", lambda _: path.write_text(later))
    assert startup.cpu_use(path) == pytest.approx(0.3)
    assert startup.cpu_use(path) == 1  # no tick between
    assert startup.cpu_use(tmp_path / "none") == 0


@pytest.mark.parametrize("use, spins", [(0.4, None), (0.6, "1000")])
def test_busy_machine_gets_a_short_loop(use, spins, unset, monkeypatch):
    monkeypatch.setattr(startup, "cpu_use", lambda: use)
    startup.prepare()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    assert ("GOMP_SPINCOUNT" in describe_machine(torch.device("cpu"))) == (spins is not None)
    os.environ.pop("GOMP_SPINCOUNT", None)


@pytest.mark.parametrize("name", startup.SETTINGS)
def test_own_settings_are_kept(name, unset, monkeypatch):
    monkeypatch.setattr(startup, "cpu_use", lambda: 1.0)
    monkeypatch.setenv(name, "7")
    before = dict(os.environ)
    startup.prepare()
    assert dict(os.environ) == before
