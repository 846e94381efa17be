"""Checkpoints, atomic files, run folders, seeds."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import utils
from runtime.errors import UserError, WriteError, reading
from runtime.files import write_rows, write_text
from runtime.folders import create_run_folder
from runtime.logs import open_log
from utils import AverageMeter, derive_seed, load_checkpoint, load_state, save_checkpoint

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")


def test_checkpoint_round_trip(tmp_path):
    content = {"state_dict": {"w": torch.arange(3.0)}, "epoch": 4, "args": {"amp": "off"}}
    save_checkpoint(tmp_path / "c.pt", "weights", content)
    found = load_checkpoint(tmp_path / "c.pt", ["weights"])
    assert found["state_dict"]["w"].equal(torch.arange(3.0))
    assert (found["kind"], found["epoch"], found["args"]) == ("weights", 4, {"amp": "off"})
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "bare.pt")
    found = load_checkpoint(tmp_path / "bare.pt", ["weights", "state_dict"])
    assert found["kind"] == "state_dict"
    assert found["state_dict"]["weight"].shape == (2, 2)
    with pytest.raises(UserError, match=r"bare\.pt: holds state_dict; expected .*weights"):
        load_checkpoint(tmp_path / "bare.pt", ["weights"])


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hostile-was-here",))


def test_code_in_a_checkpoint_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": utils.CHECKPOINT_FORMAT, "x": Hostile()}, tmp_path / "h.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name in ("h.pt", "p.pt"):
        with pytest.raises(UserError, match=name):
            load_checkpoint(tmp_path / name, ["weights"])
    assert not (tmp_path / "hostile-was-here").exists()


def test_what_is_no_checkpoint_is_named_in_one_line(tmp_path):
    save_checkpoint(tmp_path / "search.pt", "search", {"x": torch.zeros(1000)})
    whole = (tmp_path / "search.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("Genotype(...)")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("cut.pt", "empty.pt", "text.pt", "list.pt", "search.pt", "none.pt", "."):
        with pytest.raises(UserError) as caught:
            load_checkpoint(tmp_path / name, ["weights"])
        text = str(caught.value)
        assert str(tmp_path / name) in text
        assert "weights" in text
        assert "\n" not in text


@pytest.mark.parametrize("changes, expected", [
    ({"weight": torch.zeros(3, 4)}, r"weight is \(3, 4\), the network expects \(3, 2\)"),
    ({"bias": None}, r"bias is missing"),
    ({"extra": torch.zeros(1)}, r"extra is \(1,\), the network expects nothing"),
    ({"bias": torch.full((3,), torch.nan)}, r"bias is not finite"),
], ids=["shape", "missing", "extra", "NaN"])  # fmt: skip
def test_state_that_does_not_fit_is_refused(changes, expected):
    module = nn.Linear(2, 3)
    state = nn.Linear(2, 3).state_dict()
    load_state(module, state, "file.pt")
    found = {name: value for name, value in {**state, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=rf"file\.pt: .*{expected}"):
        load_state(module, found, "file.pt")


@pytest.mark.parametrize("raised, expected", [
    (KeyError("layers"), "x.pt: KeyError: 'layers'; expected a table"),
    (ValueError("one\ntwo"), "x.pt: ValueError: one; expected a table"),
    (FileNotFoundError("x"), "x.pt: no such file; expected a table"),
    (PermissionError(13, "denied"), "x.pt: cannot be read (denied); expected a table"),
    (UserError("as it is"), "as it is"),
    # No fault of the file.
    (MemoryError("more"), "more"), (KeyboardInterrupt("now"), "now"),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_reading_names_the_file(raised, expected):
    own = isinstance(raised, MemoryError | KeyboardInterrupt)
    with pytest.raises(type(raised) if own else UserError) as caught, reading("x.pt", "a table"):
        raise raised
    assert str(caught.value) == expected


@pytest.mark.parametrize("error, raised, said", [
    (OSError(errno.ENOSPC, "full"), WriteError, r"c\.pt: cannot be written \(full\)"),
    (KeyboardInterrupt(), KeyboardInterrupt, None),
], ids=["full disk", "Ctrl-C"])  # fmt: skip
def test_a_write_that_fails_keeps_the_old_file(error, raised, said, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c.pt", "weights", {"epoch": 1})
    before = (tmp_path / "c.pt").read_bytes()
    monkeypatch.setattr(os, "fsync", Mock(side_effect=error))
    with pytest.raises(raised, match=said):
        save_checkpoint(tmp_path / "c.pt", "weights", {"epoch": 2})
    assert (tmp_path / "c.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


@needs_full
def test_a_disk_that_fills_inside_torch_save_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *_: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(WriteError, match=r"c\.pt: cannot be written"):
        save_checkpoint(tmp_path / "c.pt", "weights", {"x": torch.zeros(100_000)})


@needs_full
def test_a_log_on_a_full_disk_is_one_line_once(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = open_log(tmp_path)
    with pytest.raises(WriteError, match=r"log\.txt: cannot be written \(No space left"):
        log.info("one")
    log.info("two")
    open_log()
    assert "Traceback" not in capsys.readouterr().err


def test_text_is_replaced_whole_and_readable_by_others(tmp_path):
    write_text(tmp_path / "t", "one")
    write_text(tmp_path / "t", "zwölf")
    assert (tmp_path / "t").read_text(encoding="utf-8") == "zwölf"
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o666 & ~mask
    for name in ("", "/", str(tmp_path)):
        with pytest.raises(WriteError, match="cannot be written"):
            write_text(name, "no file")


def test_run_folders_are_new(tmp_path):
    first = create_run_folder(tmp_path, None, "train")
    assert create_run_folder(tmp_path, None, "train") != first
    labelled = create_run_folder(tmp_path, "mine", "train")
    (labelled / "log.txt").touch()
    assert create_run_folder(tmp_path, "mine", "train") == labelled
    (labelled / "weights.pt").touch()
    with pytest.raises(UserError, match=r"--save mine: .* is not empty"):
        create_run_folder(tmp_path, "mine", "train")


def test_seeds_differ_and_stay():
    keys = [(seed, stream, epoch) for seed in range(3) for stream in range(3) for epoch in range(3)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert derive_seed(2, 0, 1) == 7006255215521402662


def test_average_meter_counts_images():
    meter = AverageMeter(torch.device("cpu"))
    assert meter.read() == (0.0, 0.0)
    meter.update(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 2]))
    meter.update(torch.tensor(5.0), torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert meter.read() == (2.0, 75.0)


def test_rows_keep_every_column(tmp_path):
    write_rows([{"epoch": 1, "a": 0.5}, {"epoch": 2, "a": 1.0, "b": 2}], tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text() == "epoch,a,b\n1,0.5,\n2,1.0,2\n"
