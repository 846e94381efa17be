"""Checkpoints that are damaged, forged, of half precision or of old versions of torch."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from runs import weights

from common.weights import load_trained, rebuild_network
from runtime.errors import UserError
from utils import save_checkpoint


@pytest.fixture
def content(tmp_path) -> dict:
    return torch.load(weights(tmp_path / "w.pt"), weights_only=True)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_trained(path)
    return str(raised.value)


def test_flipped_bit_of_a_weight_is_found(tmp_path):
    whole = weights(tmp_path / "w.pt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = [i for i in archive.infolist() if "/data/" in i.filename and i.file_size]
    for record in records[:: len(records) // 20]:
        # The lengths of the name and of the padding before the data are in the header.
        name, extra = struct.unpack("<HH", whole[record.header_offset + 26 :][:4])
        flipped = bytearray(whole)
        flipped[record.header_offset + 30 + name + extra + record.file_size // 2] ^= 4
        (tmp_path / "w.pt").write_bytes(flipped)
        assert "the check sum of" in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize("changes", [
    {"C": 10**7}, {"layers": 51}, {"C": "2"}, {"genotype": 3}, {"more": 1}, {"C": 1024},
], ids=str)  # fmt: skip
def test_network_that_the_file_does_not_hold_is_not_built(changes, content):
    with pytest.raises(UserError, match=r"w\.pt"):
        rebuild_network({**content["model"], **changes}, content["state_dict"], "w.pt")


@pytest.mark.parametrize("wrong", [
    "text", torch.zeros(1).expand(2**40), torch.full((12, 1, 3, 3), float("inf")),
])  # fmt: skip
def test_wrong_tensor_is_refused(wrong, content, tmp_path):
    content["state_dict"]["stem.0.weight"] = wrong
    torch.save(content, tmp_path / "w.pt")
    assert "w.pt" in refusal(tmp_path / "w.pt")


def test_half_precision_and_old_files_are_read(content, tmp_path):
    state = content["state_dict"]
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    save_checkpoint(tmp_path / "half.pt", "weights", {**content, "state_dict": half})
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("half.pt", "old.pt"):
        found = load_trained(tmp_path / name, layers=3, init_channels=4)
        assert found.model.stem[0].weight.dtype == torch.float32
