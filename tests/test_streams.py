"""What a script does when a stream is narrow or broken, at a hang-up, and while it imports."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from fer2013_files import write_small_table
from runs import LIMIT, ROOT, TRAIN, command, cut, finish, raise_after, read

from benchmarks.runs import Child
from common import arguments, cli
from runtime.stop import stop_on_signals

SCRIPTS = ("search.py", "train_FER2013.py", "relabel_training.py", "ensemble.py", "test_CK48.py",
           "test_JAFFE.py", "-m tools.predict", "-m benchmarks.faces")  # fmt: skip
INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_table(tmp_path_factory.mktemp("data"), each=3)


def test_any_character_can_be_printed(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    parser = arguments.new_parser("x")
    assert cli.run_script(lambda _: print("62.5 ± 1 \udcff"), parser, []) == 0
    assert stream.buffer.getvalue() == b"62.5 \\xb1 1 \\udcff\n"


def hang_up(ignored: bool, line: str) -> None:
    """Let this process send itself two SIGHUPs when it first logs `line`; nohup ignores them."""
    if ignored:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_after(line, signal.SIGHUP)


def test_a_hang_up_saves(data, tmp_path):
    words = command(TRAIN, data, tmp_path, "--save", "t")
    status, printed = cut(words, "epoch 2 step 1/", signal.SIGHUP, tmp_path / "t.log")
    assert status == 129
    assert "stopped (SIGHUP); saved" in printed.rstrip().splitlines()[-1]
    assert read(tmp_path / "t")["state"]["epoch"] == 1
    finish(command(TRAIN, data, tmp_path, "--resume", "t"), tmp_path / "resumed.log")
    words = command(TRAIN, data, tmp_path, "--save", "u")[1:]
    child = Child(words, tmp_path / "u.log", partial(hang_up, True, "epoch 2 step 1/"))
    assert child.wait(LIMIT) == 0, "nohup"


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_second_warning_still_saves(name):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        for _ in range(2):
            signal.raise_signal(number)
        assert stop.requested() == name
    assert signal.getsignal(number) == before


def test_help_with_a_notebooks_backend_and_no_docstrings():
    # A latin terminal, too.
    env = {"MPLBACKEND": "module://nowhere", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
    for script in ("train_FER2013.py", "-m tools.compare"):
        done = subprocess.run(
            [sys.executable, "-OO", *script.split(), "--help"],
            cwd=ROOT,
            env={**os.environ, **env},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_imports_is_one_line(script, tmp_path):
    (tmp_path / "torch.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, *script.split()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "interrupted\n"
