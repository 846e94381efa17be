"""tools.export: files for other programs, equal to the checkpoint."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from runs import weights

from auto_fernet import Predictor
from common import cli
from common.manifest import digest
from common.weights import load_network
from data.types import CLASSES
from tools import export

pytest.importorskip("onnxscript", reason="the packages of requirements-export.txt are missing")


def exported(*words: object) -> int:
    argv = [str(word) for word in words]
    return cli.run_script(export.main, export.build_parser(), argv)


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2", os.fsdecode(b"\xff.onnx")])
def test_exported_file_gives_the_same_logits(name, tmp_path, capsys):
    path, out = weights(tmp_path / "a.pt"), tmp_path / name
    assert exported(path, "--out", out) == 0
    assert "written: " in capsys.readouterr().out
    images = torch.rand(5, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    run = export.run_pt2 if name == "a.pt2" else export.run_onnx
    if not name.isascii():  # which onnxruntime cannot open
        out = out.rename(tmp_path / "a.onnx")
    with torch.no_grad():
        expected = load_network(str(path))(images)[0]
    for count in (1, 5):
        assert torch.allclose(run(out, images[:count]), expected[:count], atol=1e-5)
    if name == "a.pt2":
        info = dict.fromkeys(("classes", "side", "checkpoint_sha256"), "")
        torch.export.load(out, extra_files=info)
    else:
        info = Predictor(out)._session.get_modelmeta().custom_metadata_map
        faces = np.zeros((2, 48, 48), np.uint8)
        assert Predictor(out).probabilities(faces).shape == (2, len(CLASSES))
    assert json.loads(info["classes"]) == list(CLASSES)
    assert (info["side"], info["checkpoint_sha256"]) == ("48", digest(path))


def test_file_that_differs_is_not_written(tmp_path, monkeypatch, capsys):
    path, out = weights(tmp_path / "a.pt"), tmp_path / "a.onnx"
    monkeypatch.setattr(export, "run_onnx", lambda _, images: torch.zeros(len(images), 7))
    assert exported(path, "--out", out) == 2
    assert "not written, its logits differ by" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("out, said", [
    ("a.pth", "--out {}/a.pth: expected a name that ends in .onnx or .pt2"),
    ("no/a.onnx", "{}/no/a.onnx: cannot be written"),
])  # fmt: skip
def test_errors_are_one_line(out, said, tmp_path, capsys):
    path = weights(tmp_path / "a.pt")
    assert exported(path, "--out", tmp_path / out) == 2
    assert said.format(tmp_path) in capsys.readouterr().err.splitlines()[-1]
