"""Runs survive what befalls them; `make faults` does the same to both scripts, and more often."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import train_FER2013
from benchmarks import faults
from benchmarks.fault_cases import FAULTS, Bench, kill_and_resume
from benchmarks.runs import ROOT, difference
from common import cli
from data.cache import cache_path
from data.fer2013 import load_fer2013
from data.fes import load_votes
from utils import UserError, WriteError, atomic_write, is_out_of_memory, open_log

# What others do not do alike: disk full and read-only are as the limit of sizes, for instance.
HERE = ("file size limit", "folder read only at once", "folder removed", "two in a folder",
        "second ctrl c", "memory of machine", "cache cut")  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("name", HERE)
def test_a_fault_is_one_line_and_costs_nothing_that_was_saved(name, bench):
    assert FAULTS[name](bench, "train") is None


def test_a_run_killed_at_some_moment_ends_like_one_that_was_not(bench):
    assert kill_and_resume(bench, "train", 0.3, 0.2) is None


def test_a_difference_is_noticed(bench):
    whole = bench.whole("train")
    copy = bench.folder / "copy"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert difference(copy, whole) is None
    checkpoint = torch.load(copy / "checkpoint.pt", weights_only=True)
    checkpoint["state_dict"]["classifier.bias"][0] += 1e-7
    torch.save(checkpoint, copy / "checkpoint.pt")
    assert difference(copy, whole) == "another checkpoint.pt"
    (copy / "weights.pt").unlink()
    assert "weights.pt missing" in difference(copy, whole)


def test_the_campaign_counts_and_its_status_tells(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(faults, "FAULTS", {"held": lambda *_: None, "not held": lambda *_: "why"})
    argv = ["--kills", "0", "--inputs", "60", "--parsers", "genotype,votes", "--scripts", "train",
            "--out", str(tmp_path / "f.json")]  # fmt: skip
    assert cli.run(faults.main, faults.build_parser(), argv) == 2
    printed = capsys.readouterr()
    assert "1 of " in printed.err
    assert "why" in printed.out
    assert '"tried": 30' in (tmp_path / "f.json").read_text()


# ---------------------------------------------------------------- where errors end


def status_of(error: BaseException, capsys) -> tuple[int, str]:
    def main(_args):
        raise error

    status = cli.run(main, train_FER2013.build_parser(), [])
    return status, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_exhausted_memory_says_what_to_lower(error, capsys):
    assert is_out_of_memory(error)
    status, text = status_of(error, capsys)
    assert status == 2
    assert "out of memory" in text
    assert "--batch_size" in text
    assert "\n" not in text


@pytest.mark.parametrize("load", [load_fer2013, load_votes])
@pytest.mark.parametrize(
    "said",
    [
        "Error tokenizing data. C error: out of memory",
        "Calling read(nbytes) on source failed. Try engine='python'.",
    ],
)
def test_memory_that_ends_while_a_table_is_read_is_no_fault_of_the_table(
    said, load, bench, monkeypatch
):
    def exhausted(*_args, **_kwargs):
        raise pd.errors.ParserError(said)

    monkeypatch.setattr(pd, "read_csv", exhausted)
    cache_path(bench.data).unlink(missing_ok=True)
    with pytest.raises(MemoryError):
        load(bench.data)


def test_memory_that_ends_while_the_cache_is_read_does_not_rebuild_it(bench, monkeypatch):
    def exhausted(*_args, **_kwargs):
        raise MemoryError

    load_fer2013(bench.data)
    before = cache_path(bench.data).stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr("numpy.load", exhausted)
        with pytest.raises(MemoryError):
            load_fer2013(bench.data)
    assert cache_path(bench.data).stat().st_mtime_ns == before


def test_other_errors_keep_their_traceback(capsys):
    with pytest.raises(RuntimeError, match="of ours"):
        status_of(RuntimeError("a fault of ours"), capsys)


@pytest.mark.parametrize(
    "number, todo",
    [(errno.ENOSPC, "free some room"), (errno.EFBIG, "ulimit -f"), (errno.EROFS, "writable"),
     (errno.ENOENT, "removed?"), (errno.EIO, "see to the folder")],
)  # fmt: skip
def test_a_file_that_cannot_be_written_says_what_to_do(number, todo, tmp_path, capsys):
    def write(_file):
        raise OSError(number, os.strerror(number))

    with pytest.raises(WriteError) as raised:
        atomic_write(tmp_path / "x", write)
    status, text = status_of(raised.value, capsys)
    assert status == 2
    assert todo in text
    assert "--resume, or start again" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_to_a_full_disk_is_one_line(bench):
    words = [str(bench.whole("train")), "--out", str(bench.folder / "merged.json")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tools.collect", *words], cwd=ROOT, stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the output cannot be written (No space left on device); free some room" in done.stderr


def test_ctrl_c_while_torch_writes_is_ctrl_c_and_keeps_the_old_file(tmp_path):
    class Interrupted(io.BytesIO):
        def write(self, _data):
            raise KeyboardInterrupt

    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "x", lambda _: torch.save({"w": torch.ones(9999)}, Interrupted()))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_folder_is_of_one_process_until_it_ends(tmp_path):
    first = open_log(tmp_path)
    held = [handler for handler in first.handlers if hasattr(handler, "baseFilename")]
    first.removeHandler(held[0])
    with pytest.raises(UserError, match="another process runs in it"):
        open_log(tmp_path)
    held[0].close()
    open_log(tmp_path)
    open_log()


def test_names_that_are_no_text_do_not_break_the_log(tmp_path):
    open_log(tmp_path).info("%s", os.fsdecode(b"\xff"))
    open_log()
    assert "\\udcff" in (tmp_path / "log.txt").read_text()


def test_a_log_that_cannot_be_made_is_one_line(tmp_path):
    with pytest.raises(WriteError, match="cannot be written"):
        open_log(Path(tmp_path / "none"))
    open_log()
