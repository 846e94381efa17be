"""Parsers against what strangers may send; `make faults` gives them far more of it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from fer2013_files import small_set, table_rows, table_text
from PIL import Image

import data.bounded
from benchmarks.hostile import fault_of, try_inputs
from benchmarks.hostile_inputs import MARKER, PAYLOADS, saved
from benchmarks.hostile_parsers import PARSERS, encoded, image_samples, weights_content
from common.checkpoints import MAX_LAYERS, rebuild_network
from common.weights import load_trained
from data.fer2013 import load_fer2013
from data.fes import load_votes
from data.images import decode_image
from genotypes import MAX_NODES, parse_genotype
from utils import UserError, load_checkpoint, save_checkpoint

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "40"))
# Most of these build a network.
SLOWER = {"a training to resume": 3, "a search to resume": 6, "folds to resume": 6, "folder": 2}


@pytest.mark.parametrize("name", PARSERS)
def test_no_input_does_more_than_give_a_value_or_one_line(name):
    tally = try_inputs(PARSERS[name], EXAMPLES // SLOWER.get(name, 1), seed=0)
    assert tally.tried > EXAMPLES // 20
    assert not tally.failures, [reason for reason, _ in tally.failures[:3]]


def test_what_does_more_than_read_is_noticed(tmp_path):
    whole = PARSERS["weights"]

    def noticed(read):
        return fault_of(whole._replace(read=read), b"", tmp_path)

    assert "mkdir" in noticed(lambda _: os.mkdir("x"))
    assert "to write" in noticed(lambda path: path.write_bytes(b""))
    assert "os.system" in noticed(lambda _: os.system("true"))
    assert "KeyError" in noticed(lambda _: {}["x"])
    assert noticed(lambda _: None) is None
    payload = pickle.dumps(PAYLOADS[0])
    assert fault_of(whole._replace(read=lambda p: pickle.loads(p.read_bytes())), payload, tmp_path)
    assert not (tmp_path / MARKER).exists()


# ---------------------------------------------------------------- checkpoints


@pytest.fixture
def content():
    return weights_content()


def weights_file() -> bytes:
    return saved(weights_content())


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_trained(path, layers=None, init_channels=None, arch=None)
    assert str(raised.value).isprintable()
    return str(raised.value)


def test_a_flipped_bit_in_any_weight_is_noticed(tmp_path):
    whole = weights_file()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = [i for i in archive.infolist() if "/data/" in i.filename and i.file_size]
    for record in records[:: len(records) // 40]:
        # The name's length, and that of the padding before the data, stand in the header.
        name, extra = struct.unpack("<HH", whole[record.header_offset + 26 :][:4])
        position = record.header_offset + 30 + name + extra + record.file_size // 2
        damaged = bytearray(whole)
        damaged[position] ^= 4
        (tmp_path / "w.pt").write_bytes(damaged)
        assert "the check sum of" in refusal(tmp_path / "w.pt")


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path):
    whole = zipfile.ZipFile(io.BytesIO(weights_file()))
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert "compressed" in refusal(tmp_path / "w.pt")


def test_a_checkpoint_cut_at_any_byte_is_refused(tmp_path):
    whole = weights_file()
    path = tmp_path / "w.pt"
    for length in [*range(0, 200), *np.linspace(200, len(whole) - 1, 200).astype(int)]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"w\.pt: damaged or not a checkpoint"):
            load_checkpoint(path, ["weights"])


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"C": 10**7}, "C of 1 to 1024"),
        ({"layers": MAX_LAYERS + 1}, "layers of 1 to 50"),
        ({"layers": -3}, "describes its network"),
        ({"C": "2"}, "describes its network"),
        ({"genotype": 3}, "describes its network"),
        ({"genotype": "Genotype("}, "expected a literal Genotype"),
        ({"C": 1024, "layers": MAX_LAYERS}, "the network expects"),
        ({"more": 1}, "describes its network"),
    ],
)
def test_a_network_that_the_file_does_not_hold_is_never_built(changes, named, content, tmp_path):
    description = {**content["model"], **changes}
    with pytest.raises(UserError, match=named):
        rebuild_network(description, content["state_dict"], "w.pt")


@pytest.mark.parametrize(
    "wrong, found",
    [
        ("text", "str"),
        (torch.zeros(3, 1, 3, 3).to_sparse(), "sparse"),
        (torch.zeros(3, 1, 3, 3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, 1, 3, 3, dtype=torch.int64), "int64"),
        (torch.zeros(1).expand(2**40), "(1099511627776,)"),
        (torch.full((3, 1, 3, 3), float("inf")), "is not finite"),
        (torch.zeros(3, 1, 3, 3, device="meta"), "is not finite"),
    ],
)
def test_a_wrong_tensor_is_named(wrong, found, content, tmp_path):
    content["state_dict"]["stem.0.weight"] = wrong
    torch.save(content, tmp_path / "w.pt")
    text = refusal(tmp_path / "w.pt")
    assert "stem.0.weight is" in text
    assert found in text


def test_half_precision_and_files_of_old_torch_are_read(content, tmp_path):
    state = {name: t.half() if t.is_floating_point() else t for name, t in
             content["state_dict"].items()}  # fmt: skip
    save_checkpoint(tmp_path / "half.pt", "weights", {**content, "state_dict": state})
    (tmp_path / "old.pt").write_bytes(saved(content["state_dict"], archive=False))
    for name in ("half.pt", "old.pt"):
        found = load_trained(tmp_path / name, layers=3, init_channels=1, arch=None)
        assert found.model.stem[0].weight.dtype == torch.float32


# ---------------------------------------------------------------- tables and archives


@pytest.mark.parametrize("load, name", [(load_fer2013, "fer2013.csv"), (load_votes, "votes.csv")])
def test_a_table_is_refused_for_its_first_line_and_for_endless_ones(load, name, tmp_path):
    path = tmp_path / name
    header = b"emotion,pixels,Usage\n" if load is load_fer2013 else b"Usage,a\n"
    for text, told in ((b"a," * 50_000, "line 1: more than 1024 bytes"),
                       (b'"\n",' + b"a," * 9000, "line 1: more than 1024 bytes or a quote"),
                       (header + b"7" * 70_000 + b"\n", "a line of more than 65536 bytes"),
                       (header + b"7\n" * 40_000 + b"7" * 70_000, "a line of more")):  # fmt: skip
        path.write_bytes(text)
        with pytest.raises(UserError, match=told):
            load(path)


def test_lines_of_all_lengths_pass_unchanged():
    text = b"".join(b"x" * (n * 997 % 9000) + (b"\n", b"\r\n")[n % 2] for n in range(400))
    stream = data.bounded.table_lines(io.BytesIO(b"head\n" + text), "t.csv")
    assert stream.read() == b"head\n" + text


class Endless(io.RawIOBase):
    """Zeros without end."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


@pytest.mark.parametrize(
    "name, told",
    [
        ("notes.bin", "expected at most 1048576 bytes in all"),
        ("train/happy/Training_1.png", "expected an image of at most 1048576"),
        ("fer2013.csv", "line 1: more than 1024 bytes"),
    ],
)
def test_a_member_larger_than_what_it_may_be_is_refused(name, told, tmp_path, monkeypatch):
    monkeypatch.setattr(data.bounded, "MAX_UNPACKED", 1 << 20)
    with tarfile.open(tmp_path / "fer2013.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 3 << 20
        archive.addfile(member, Endless())
    with pytest.raises(UserError, match=told):
        load_fer2013(tmp_path / "fer2013.tar.gz")


def test_zeros_after_the_end_of_an_archive_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(data.bounded, "MAX_UNPACKED", 1 << 22)
    with gzip.open(tmp_path / "fer2013.tar.gz", "wb") as file:
        file.write(bytes(16 << 20))
    with pytest.raises(UserError, match="expected at most 4194304 bytes in all"):
        load_fer2013(tmp_path / "fer2013.tar.gz")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_gigabyte_is_not_read(kind, tmp_path):
    member = tarfile.TarInfo("././@x")
    member.type, member.size = kind, 1 << 30
    path = tmp_path / "fer2013.tar.gz"
    with gzip.open(path, "wb") as file:
        file.write(member.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))
    with pytest.raises(UserError, match="a header of 1073741824 bytes"):
        load_fer2013(path)


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_an_archive_of_too_many_members_is_refused(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("data.readers.MAX_MEMBERS", 5)
    path = tmp_path / f"fer2013{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(6):
                archive.writestr(f"{number}.txt", b"")
    else:
        with tarfile.open(path, "w") as archive:
            for number in range(6):
                archive.addfile(tarfile.TarInfo(f"{number}.txt"))
    with pytest.raises(UserError, match="at most 5 members"):
        load_fer2013(path)


def test_an_archive_in_an_archive_is_left_alone(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("fer2013.csv", table_text(table_rows(small_set(1))))
    with zipfile.ZipFile(tmp_path / "fer2013.zip", "w") as archive:
        archive.writestr("fer2013.zip", inner.getvalue())
    with pytest.raises(UserError, match="holds no FER2013"):
        load_fer2013(tmp_path / "fer2013.zip")


# ---------------------------------------------------------------- images and genotypes

GRAY = np.random.default_rng(1).integers(0, 256, (48, 48), dtype=np.uint8)


def decoded(content: bytes) -> np.ndarray:
    return decode_image(io.BytesIO(content), len(content), "x.png")


def test_sixteen_bits_become_the_nearest_of_eight():
    wide = GRAY.astype(np.uint16) * 257
    for pixels in (wide, np.clip(wide.astype(np.int64) + 128, 0, 65535).astype(np.uint16)):
        assert np.array_equal(decoded(encoded(Image.fromarray(pixels), "PNG")), GRAY)


@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(turn):
    flips = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
             5: np.transpose, 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T,
             8: lambda a: np.rot90(a, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = Image.fromarray(np.ascontiguousarray(flips[turn](GRAY)))
    assert np.array_equal(decoded(encoded(stored, "PNG", exif=exif)), GRAY)


def test_palettes_and_alpha_keep_the_grays():
    image = Image.fromarray(255 - GRAY)
    image.putpalette([255 - index // 3 for index in range(768)])
    gray = Image.fromarray(GRAY)
    empty = Image.fromarray(np.zeros((48, 48), np.uint8))
    for content in (encoded(image, "PNG", transparency=3),
                    encoded(Image.merge("LA", (gray, empty)), "PNG"),
                    encoded(Image.merge("RGBA", (gray, gray, gray, empty)), "PNG")):  # fmt: skip
        assert np.array_equal(decoded(content), GRAY)


def test_no_sample_of_an_image_warns_or_is_taken_for_another_size(recwarn):
    samples, read = image_samples(), 0
    for content in samples:
        with suppress(UserError):
            read += decoded(content).shape == (48, 48)
    assert 5 < read < len(samples)
    assert not recwarn.list


def test_a_cell_has_a_limit_of_nodes():
    edges = [("ghost", 0), ("ghost", 1)] * (MAX_NODES + 1)
    text = f"Genotype({edges}, [2], {edges[:2]}, [2])"
    with pytest.raises(UserError, match="expected two for each of 1 to 32 nodes"):
        parse_genotype(text)
