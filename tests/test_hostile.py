"""Readers of user input and hostile files; `make faults` generates many more."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from runs import weights

from auto_fernet.pictures import centre_face, open_picture
from benchmarks.faults import Bench
from benchmarks.hostile import (
    MARKER,
    PAYLOADS,
    Reader,
    checkpoint_readers,
    encoded,
    fault_of,
    file_readers,
    image_samples,
    pixels,
    saved,
    try_inputs,
)
from common.weights import load_trained, rebuild_network
from data.reading.images import decode_image
from runtime.errors import UserError
from utils import load_checkpoint, save_checkpoint

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "40"))
FILES = file_readers()


@pytest.mark.parametrize("name", FILES)
def test_hostile_file_is_a_value_or_one_line(name):
    tried = try_inputs(FILES[name], EXAMPLES, seed=0)
    assert not [reason for reason in tried if reason is not None][:3]
    assert len(tried) > EXAMPLES // 20


def test_hostile_checkpoint_is_a_value_or_one_line(tmp_path):
    bench = Bench(tmp_path)
    valid = {"weights": "train", "a training to resume": "train", "a search to resume": "search",
             "folds to resume": "folds", "summary": "train"}  # fmt: skip
    (tmp_path / "read").mkdir()
    for name, reader in checkpoint_readers(bench).items():
        tried = try_inputs(reader, EXAMPLES // 5, seed=0)
        assert not [(name, reason) for reason in tried if reason is not None][:3]
        if name in valid:  # accepted when nothing is wrong with it
            whole = bench.whole(valid[name]) / {"w.pt": "weights.pt"}.get(reader.file, reader.file)
            (tmp_path / "read" / reader.file).write_bytes(whole.read_bytes())
            reader.read(tmp_path / "read" / reader.file)


def test_what_does_more_than_read_is_found():
    def found(read, content=b""):
        return fault_of(Reader("w.pt", st.nothing(), read), content)

    assert "/x" in found(lambda path: path.with_name("x").mkdir())
    assert "os.system" in found(lambda _: os.system("true"))
    assert "KeyError" in found(lambda _: {}["x"])
    assert found(lambda _: None) is None
    assert MARKER in found(lambda p: pickle.loads(p.read_bytes()), pickle.dumps(PAYLOADS[1]))


# --- checkpoints


@pytest.fixture
def content(tmp_path):
    return torch.load(weights(tmp_path / "w.pt", C=1, auxiliary=False))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_trained(path)
    assert str(raised.value).isprintable()
    return str(raised.value)


def test_flipped_bit_of_a_weight_is_found(content, tmp_path):
    whole = saved(content)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = [i for i in archive.infolist() if "/data/" in i.filename and i.file_size]
    for record in records[:: len(records) // 20]:
        # The lengths of the name and of the padding before the data are in the header.
        name, extra = struct.unpack("<HH", whole[record.header_offset + 26 :][:4])
        position = record.header_offset + 30 + name + extra + record.file_size // 2
        damaged = bytearray(whole)
        damaged[position] ^= 4
        (tmp_path / "w.pt").write_bytes(damaged)
        assert "the check sum of" in refusal(tmp_path / "w.pt")


def test_compressed_or_cut_checkpoint_is_refused(content, tmp_path):
    whole, path = saved(content), tmp_path / "w.pt"
    archive = zipfile.ZipFile(io.BytesIO(whole))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert "compressed" in refusal(path)
    for length in [*range(0, 200, 8), *np.linspace(200, len(whole) - 1, 60).astype(int)]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"w\.pt: .* expected a checkpoint"):
            load_checkpoint(path, ["weights"])


@pytest.mark.parametrize(
    "changes",
    [{"C": 10**7}, {"layers": 51}, {"layers": -3}, {"C": "2"}, {"genotype": 3}, {"more": 1},
     {"genotype": "Genotype("}, {"C": 1024, "layers": 50}],
)  # fmt: skip
def test_network_that_the_file_does_not_hold_is_not_built(changes, content):
    with pytest.raises(UserError, match=r"w\.pt|Genotype"):
        rebuild_network({**content["model"], **changes}, content["state_dict"], "w.pt")


@pytest.mark.parametrize(
    "wrong",
    ["text", torch.zeros(3, 1, 3, 3).to_sparse(), torch.zeros(3, 1, 3, 3, dtype=torch.complex64),
     torch.zeros(3, 1, 3, 3, dtype=torch.int64), torch.zeros(1).expand(2**40),
     torch.full((3, 1, 3, 3), float("inf")), torch.zeros(3, 1, 3, 3, device="meta")],
)  # fmt: skip
def test_wrong_tensor_is_refused(wrong, content, tmp_path):
    content["state_dict"]["stem.0.weight"] = wrong
    torch.save(content, tmp_path / "w.pt")
    assert "w.pt" in refusal(tmp_path / "w.pt")


def test_half_precision_and_old_files_are_read(content, tmp_path):
    state = content["state_dict"]
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    save_checkpoint(tmp_path / "half.pt", "weights", {**content, "state_dict": half})
    (tmp_path / "old.pt").write_bytes(saved(state, archive=False))
    for name in ("half.pt", "old.pt"):
        found = load_trained(tmp_path / name, layers=3, init_channels=1)
        assert found.model.stem[0].weight.dtype == torch.float32


# --- images


def decoded(content: bytes) -> np.ndarray:
    return decode_image(io.BytesIO(content), "x.png")


def test_deep_palette_and_transparent_images_keep_their_grays():
    gray, palette = Image.fromarray(pixels()), Image.fromarray(255 - pixels())
    palette.putpalette([255 - index // 3 for index in range(768)])
    deep = Image.fromarray(pixels().astype(np.uint16) * 257)
    empty = Image.fromarray(np.zeros((48, 48), np.uint8))
    for image in (palette, deep, Image.merge("LA", (gray, empty))):
        assert np.array_equal(decoded(encoded(image, "PNG")), pixels())


def test_image_samples_are_read_or_refused_without_warnings(recwarn, tmp_path):
    read = 0
    for content in image_samples():
        (tmp_path / "i").write_bytes(content)
        assert centre_face(open_picture(tmp_path / "i")).shape == (48, 48)
        with suppress(UserError):
            read += decoded(content).shape == (48, 48)
    assert 5 < read < len(image_samples())
    assert not recwarn.list
