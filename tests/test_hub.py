"""Networks by torch.hub."""

from __future__ import annotations

import sys

import numpy
import PIL.Image
import torch
from runs import ROOT, run, weights

import hubconf
from common.manifest import read_manifest
from common.weights import CHECKPOINTS, load_network
from data.augment import to_float

LOAD = """
import torch
network = torch.hub.load({root!r}, "auto_fernet_s", source="local")
assert not network.training
torch.save(network(torch.load("images.pt"))[0], "logits.pt")
"""


def test_network_loads_from_another_folder(tmp_path):
    images = torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    weights(tmp_path / "auto_fernet_s.pt")  # not the one that is asked for
    done = run([sys.executable, "-c", LOAD.format(root=str(ROOT))], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = load_network(str(CHECKPOINTS / "auto_fernet_s.pt"))(images)[0]
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_each_network_of_the_manifest_is_an_entry():
    entries = {name for name, value in vars(hubconf).items() if callable(value) and name[0] != "_"}
    assert entries == read_manifest(CHECKPOINTS).keys()


def test_documented_preprocessing_runs(tmp_path, monkeypatch, face):
    PIL.Image.fromarray(face).save(tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    lines = [line.strip() for line in (hubconf.auto_fernet.__doc__ or "").splitlines()]
    names = {"PIL": PIL, "torch": torch, "numpy": numpy, "network": hubconf.auto_fernet_s()}
    exec("\n".join(line for line in lines if " = " in line), names)
    assert names["logits"].shape == (1, 7)
    assert names["images"].equal(to_float(torch.tensor(face)[None, None]))
