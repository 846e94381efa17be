"""Runs survive faults, and errors end as one line; `make faults` causes the other faults."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import train_FER2013
from benchmarks.faults import FAULTS, Bench, killed
from benchmarks.runs import difference
from common import arguments, cli
from common.parsing import parse
from runtime.errors import UserError, WriteError, is_out_of_memory
from runtime.logs import open_log
from utils import save_checkpoint

# Of each kind of fault one; the others end alike.
HERE = ("file size limit", "folder read-only at once", "folder removed", "two in a folder",
        "second Ctrl-C", "memory of the machine", "memory in time")  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("name", HERE)
def test_fault_ends_in_one_line_and_loses_nothing(name, bench):
    assert FAULTS[name](bench, "train") is None


def test_killed_run_resumes_to_the_same_end(bench):
    assert killed(0.3, 0.2, bench, "train") is None


def test_run_killed_after_its_last_epoch_resumes_to_the_same_end(bench):
    child, folder = bench.start("train")
    child.wait_for("epoch 3/3")
    child.signal(signal.SIGKILL)
    child.wait()
    assert bench.finish("train", bench.resume("train", folder), folder) is None
    assert bench.finish("train", bench.resume("train", folder), folder) is None


def test_difference_of_runs_is_found(bench):
    whole = bench.whole("train")
    copy = Path(shutil.copytree(whole, bench.folder / "copy"))
    assert difference(copy, whole) is None
    checkpoint = torch.load(copy / "checkpoint.pt", weights_only=True)
    checkpoint["state_dict"]["classifier.bias"][0] += 1e-7
    torch.save(checkpoint, copy / "checkpoint.pt")
    assert difference(copy, whole) == "another checkpoint.pt"
    (copy / "weights.pt").unlink()
    assert "weights.pt missing" in difference(copy, whole)


# --- where errors end


def status_of(error: BaseException, capsys) -> tuple[int, str]:
    def main(_args):
        raise error

    status = cli.run_script(main, arguments.new_parser("x"), [])
    return status, capsys.readouterr().err.strip()


@pytest.mark.parametrize("error", [
    MemoryError(),
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
    RuntimeError("std::bad_alloc"),
])  # fmt: skip
def test_exhausted_memory_is_one_line(error, capsys):
    assert is_out_of_memory(error)
    status, text = status_of(error, capsys)
    assert status == 2
    assert "out of memory" in text
    assert "--batch_size" in text
    assert "\n" not in text
    with pytest.raises(RuntimeError, match="of ours"):
        status_of(RuntimeError("an error of ours"), capsys)


def test_run_folder_admits_one_process(tmp_path):
    first = open_log(tmp_path)
    held = [handler for handler in first.handlers if hasattr(handler, "baseFilename")]
    first.removeHandler(held[0])
    assert not any("cannot be locked" in line for line in (tmp_path / "log.txt").open())
    with pytest.raises(UserError, match="another process runs in it"):
        open_log(tmp_path)
    (tmp_path / "log.txt").unlink()
    with pytest.raises(UserError, match="another process runs in it"):
        open_log(tmp_path)
    held[0].close()
    open_log(tmp_path).info("%s", os.fsdecode(b"\xff"))
    open_log()
    assert "\\udcff" in (tmp_path / "log.txt").read_text()
    with pytest.raises(WriteError, match="cannot be written"):
        open_log(tmp_path / "none")
    (tmp_path / "log.txt").unlink()
    os.mkfifo(tmp_path / "log.txt")
    with pytest.raises(UserError, match="a FIFO, expected a regular file"):
        open_log(tmp_path)


def test_missing_locks_are_told(tmp_path, monkeypatch, capsys):
    def flock(_file, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("runtime.logs.fcntl.flock", flock)
    open_log(tmp_path)
    assert f"{tmp_path}: files cannot be locked here" in capsys.readouterr().err
    monkeypatch.setattr("runtime.logs.fcntl", None)
    open_log(tmp_path)
    assert f"{tmp_path}: files cannot be locked here" in capsys.readouterr().err
    open_log()


def test_checkpoint_is_read_when_its_folder_is_locked(tmp_path, monkeypatch):
    def ended(folder):
        save_checkpoint(folder / "checkpoint.pt", "training", {"args": started, "epoch": 2})
        return open_log(folder)

    started = {"script": "train_FER2013.py"}
    save_checkpoint(tmp_path / "checkpoint.pt", "training", {"args": started, "epoch": 1})
    monkeypatch.setattr("common.parsing.open_log", ended)
    parser = train_FER2013.build_parser()
    assert parse(parser, ["--resume", str(tmp_path)]).resumed["epoch"] == 2
    open_log()
