"""The package auto_fernet: faces found, answers of exported networks, videos, no PyTorch."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT

from auto_fernet import PictureError, Predictor, open_picture
from auto_fernet import command as auto_fernet_command
from auto_fernet.detection import FaceDetector
from auto_fernet.pictures import cut_face
from auto_fernet.predictor import CHUNK, NETWORKS
from common.manifest import digest, read_manifest
from common.weights import CHECKPOINTS, load_network
from data.types import CLASSES

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
needs_opencv = pytest.mark.skipif(find_spec("cv2") is None, reason="OpenCV is not installed")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(threads=1)


@pytest.fixture
def photo(heads, tmp_path) -> Path:
    """A picture of 700x500 with two heads, the smaller on the left."""
    canvas = Image.new("RGB", (700, 500), (90, 120, 100))
    canvas.paste(heads[0].resize((200, 200)), (40, 150))
    canvas.paste(heads[1].resize((320, 320)), (330, 90))
    canvas.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# --- networks


@pytest.mark.parametrize("path", sorted(NETWORKS.glob("*.onnx")), ids=lambda p: p.stem)
def test_networks_equal_the_checkpoints(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(found["classes"])) == CLASSES
    assert found["checkpoint_sha256"] == digest(CHECKPOINTS / f"{path.stem}.pt")
    assert path.stem in read_manifest(CHECKPOINTS)
    faces = np.random.default_rng(0).integers(0, 256, (100, 48, 48), np.uint8)
    with torch.no_grad():
        images = torch.from_numpy(faces).unsqueeze(1).float() / 255
        logits = load_network(path.stem)(images)[0].double()
    found = Predictor(path.stem, threads=1).probabilities(faces)
    assert np.abs(found - logits.softmax(dim=1).numpy()).max() < 1e-5


FOREIGN = {
    "no network": {},
    "another input": {"name": "image"},
    "one face at a time": {"shape": [1, 1, 48, 48]},
    "another output": {"output": "probabilities"},
    "fewer logits than classes": {"classes": ["a", "b", "c"]},
    "no classes": {"classes": None},
    "classes that are numbers": {"classes": [1, 2]},
    "a class twice": {"classes": ["a", "a"]},
    "NaN": {"weight": np.nan},
}


@pytest.mark.parametrize("kind", [None, *FOREIGN])
def test_foreign_network_is_one_line(kind, tmp_path):
    """Networks of one layer, of 2 logits, and what differs from those that tools.export writes."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    ours = {"name": "faces", "shape": ["N", 1, 48, 48], "output": "logits", "weight": 0.1}
    given = {**ours, "classes": ["a", "b"], **FOREIGN.get(kind, {})}
    size = int(np.prod(given["shape"][1:]))
    weight = np.full((size, 2), given["weight"], np.float32)
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", [given["name"]], ["flat"]),
         helper.make_node("MatMul", ["flat", "weight"], [given["output"]])], "toy",
        [helper.make_tensor_value_info(given["name"], floats, given["shape"])],
        [helper.make_tensor_value_info(given["output"], floats, [given["shape"][0], 2])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    helper.set_model_props(model, {"classes": json.dumps(given["classes"])})
    onnx.save(model, tmp_path / "x.onnx")
    if kind == "no network":
        (tmp_path / "x.onnx").write_bytes(b"no network")
    if kind is None:
        assert Predictor(tmp_path / "x.onnx").classes == ("a", "b")
        return
    with pytest.raises(PictureError, match=r"x\.onnx: .*; expected a network that tools") as raised:
        Predictor(tmp_path / "x.onnx")
    assert "\n" not in str(raised.value)


def test_many_faces_are_seen_in_chunks(predictor, monkeypatch):
    faces = np.random.default_rng(0).integers(0, 256, (2 * CHUNK + 1, 48, 48), np.uint8)
    expected = np.concatenate([predictor.probabilities(face[None]) for face in faces])
    session, sizes = predictor._session, []

    def run(names, inputs):
        sizes.append(len(inputs["faces"]))
        return session.run(names, inputs)

    monkeypatch.setattr(predictor, "_session", type("Session", (), {"run": staticmethod(run)}))
    assert np.allclose(predictor.probabilities(faces), expected, atol=1e-6)
    assert sizes == [CHUNK, CHUNK, 1]
    assert predictor.probabilities(faces[:0]).shape == (0, len(CLASSES))


def test_predictor_can_be_pickled(predictor):
    face = np.full((1, 48, 48), 90, np.uint8)
    copy = pickle.loads(pickle.dumps(predictor))
    assert (copy.probabilities(face) == predictor.probabilities(face)).all()


@pytest.mark.parametrize("available, given, used", [
    (["CoreMLExecutionProvider", "CPUExecutionProvider"], None, ["CPUExecutionProvider"]),
    (["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"], None,
     ["CUDAExecutionProvider", "CPUExecutionProvider"]),
    (["CPUExecutionProvider"], ["XnnpackExecutionProvider"], ["XnnpackExecutionProvider"]),
])  # fmt: skip
def test_providers(available, given, used, monkeypatch):
    asked, session = [], onnxruntime.InferenceSession

    def create(content, options, providers):
        asked.extend(providers)
        return session(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    Predictor(providers=given)
    assert asked == used


def test_wrong_faces_are_one_line(predictor):
    with pytest.raises(PictureError, match=r"float64 \(1, 48, 48\); expected uint8"):
        predictor.probabilities(np.zeros((1, 48, 48)))


# --- faces


@needs_opencv
def test_every_synthetic_head_is_found_and_framed(heads):
    detector = FaceDetector()
    for head in heads:
        (rect,) = detector(head)
        x, y, width, height = detector.square(rect)
        # The fixed box of data/jaffe.py: 148 pixels around (130, 150).
        assert abs(x + width / 2 - 130) < 25
        assert abs(y + height / 2 - 150) < 25
        assert 90 < width == height < 180


@needs_opencv
def test_detect_emotions_from_every_source(predictor, photo):
    found = predictor.detect_emotions(photo)
    assert [face["box"][0] > 300 for face in found] == [True, False]  # the largest first
    picture = open_picture(photo)
    for source in (str(photo), picture, np.asarray(picture)):
        assert predictor.detect_emotions(source) == found
    # The oracle: the square around each box, cut and asked for by hand.
    for face in found:
        square = predictor.detector.square(tuple(face["box"]))
        p = predictor.probabilities(cut_face(picture, square)[None])[0]
        assert list(face["emotions"]) == list(CLASSES)
        assert list(face["emotions"].values()) == pytest.approx(p.tolist())
        assert predictor.detect_emotions(picture, [square])[0]["emotions"] == pytest.approx(
            face["emotions"]
        )
    best, share = predictor.top_emotion(photo)
    assert share == max(found[0]["emotions"].values()) == found[0]["emotions"][best]
    nothing = Image.new("L", (200, 200), 90)
    assert predictor.detect_emotions(nothing) == []
    assert predictor.top_emotion(nothing) == (None, None)


@needs_opencv
def test_small_and_large_pictures_are_searched(heads):
    detector = FaceDetector()
    for side in (64, 2000):
        (rect,) = detector(heads[0].resize((side, side)))
        assert 0.3 < rect[2] / side < 0.9


@needs_opencv
def test_small_faces_of_a_large_picture_are_found(heads):
    """A call of 49 tiles, a group of 40; and a photograph with a face of less than 24 pixels."""
    call = Image.new("L", (1920, 1080), 60)
    for k in range(49):
        tile = heads[k % len(heads)].resize((144, 144))
        call.paste(tile, (80 + 265 * (k % 7), 5 + 153 * (k // 7)))
    assert len(FaceDetector()(call)) == 49
    photo = Image.new("L", (6000, 4000), 60)
    for k in range(40):
        photo.paste(heads[k % len(heads)], (100 + 740 * (k % 8), 100 + 780 * (k // 8)))
    assert len(FaceDetector()(photo)) == 40
    photo = Image.new("L", (3000, 1000), 60)
    photo.paste(heads[0].resize((50, 50)), (1300, 500))
    assert FaceDetector()(photo) == []
    ((left, top, side, _),) = FaceDetector(smallest=24)(photo)
    assert abs(left + side / 2 - 1325) < 10
    assert abs(top + side / 2 - 529) < 10
    assert FaceDetector(smallest=80)(photo) == []


@needs_opencv
def test_threads_share_a_predictor(predictor, photo):
    expected = predictor.detect_emotions(photo)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor.detect_emotions, [photo] * 12))
    assert found == [expected] * 12


@pytest.mark.parametrize("source, rects", [
    (np.zeros((0, 0), np.uint8), None), (np.zeros((9, 9, 4), np.uint8), None),
    (np.zeros((9, 9), np.float32), None), (Image.new("RGB", (0, 0)), None), (b"bytes", None),
    (np.zeros((9, 9), np.uint8), [(0, 0, 3)]), (np.zeros((9, 9), np.uint8), (0, 0, 9, 9)),
    (np.zeros((9, 9), np.uint8), [(0, 0, 10**6, 10**6)]),
])  # fmt: skip
def test_wrong_arguments_are_one_line(source, rects, predictor):
    with pytest.raises(PictureError) as raised:
        predictor.detect_emotions(source, [(0, 0, 1, 1)] if rects is None else rects)
    assert "\n" not in str(raised.value)


def test_missing_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(PictureError, match=r"pip install 'opencv-python-headless>=4\.9,<5'"):
        FaceDetector()


@needs_opencv
def test_yunet_file(tmp_path):
    """A network with YuNet's outputs, whose score is how bright 8x8, 16x16 or 32x32 pixels are."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    nodes, weights, outputs = [], [], []
    for step in (8, 16, 32):
        for kind, count in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            name = f"{kind}_{step}"
            kernel = np.zeros((count, 3, step, step), np.float32)
            if count == 1 and step == 32:
                kernel[:] = 1 / (3 * 255 * step * step)
            weights += [
                onnx.numpy_helper.from_array(kernel, f"w{name}"),
                onnx.numpy_helper.from_array(np.array([1, count, -1]), f"r{name}"),
            ]
            nodes += [
                onnx.helper.make_node("Conv", ["input", f"w{name}"], [f"c{name}"],
                                      strides=[step, step], kernel_shape=[step, step]),
                onnx.helper.make_node("Reshape", [f"c{name}", f"r{name}"], [f"f{name}"]),
                onnx.helper.make_node("Transpose", [f"f{name}"], [name], perm=[0, 2, 1]),
            ]  # fmt: skip
            outputs.append(onnx.helper.make_tensor_value_info(name, 1, [1, None, count]))
    image = onnx.helper.make_tensor_value_info("input", 1, [1, 3, None, None])
    graph = onnx.helper.make_graph(nodes, "toy", [image], outputs, weights)
    opset = [onnx.helper.make_opsetid("", 11)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "y.onnx")
    picture = np.zeros((256, 256), np.uint8)
    picture[64:96, 128:160] = 255
    assert FaceDetector(tmp_path / "y.onnx")(Image.fromarray(picture)) == [(112, 48, 32, 32)]
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(PictureError, match=r"bad.onnx: .* expected a YuNet network"):
        FaceDetector(tmp_path / "bad.onnx")


# --- the command


def command(*words: object) -> int:
    return auto_fernet_command.main([str(word) for word in words])


@needs_opencv
def test_command_finds_every_face(photo, tmp_path, capsys):
    Image.new("L", (200, 200), 90).save(tmp_path / "nobody.png")
    assert command(tmp_path, "--detect", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "nobody.png  no face found" in printed
    assert "photo.png face 1" in printed
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert {row["picture"] for row in rows} == {"photo.png"}
    assert [row["face"] for row in rows] == ["0", "1"]
    expected = Predictor().detect_emotions(photo)
    for row, face in zip(rows, expected, strict=True):
        assert [int(row[name]) for name in ("x", "y", "width", "height")] == face["box"]
        assert float(row[row["expression"]]) == max(float(row[name]) for name in CLASSES)
        found = {name: float(row[name]) for name in CLASSES}
        assert found == pytest.approx(face["emotions"], abs=1e-6)
    path = tmp_path / "out" / "drawn" / "0001-photo.jpg"
    with Image.open(path) as drawn:
        x, y, _, height = expected[0]["box"]
        blue = np.abs(np.asarray(drawn).astype(int)[y + 2 : y + height - 2, x] - (33, 102, 172))
        assert np.median(blue) < 30
        assert drawn.size == (700, 500)
    with pytest.raises(PictureError, match="drawn by auto-fernet"):
        open_picture(path)


def test_command_errors_are_one_line(tmp_path, capsys):
    for words, said in (
        ([], "either pictures or --video"),
        ([tmp_path / "none.png"], "none.png: no such file"),
        ([tmp_path, "--network", "x"], "network x: no such file"),
        ([os.fsdecode(b"\xff")], "no such file"),
        (["--video", os.fsdecode(b"\xff")], "no such file"),
        (["--video", "9" * 20], "--video 9"),
        ([tmp_path], "no face in 0 pictures"),
        ([tmp_path, "--smallest", 30], "--smallest: only where faces are found"),
        ([tmp_path, "--crop", "9,9,30,30", "--detect"], "--crop: not where faces are found"),
        ([tmp_path, "--detector", "y.onnx"], "y.onnx: no such file"),
    ):
        assert command(*words, "--out", tmp_path / "out") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert not (tmp_path / "out").exists()


def test_command_runs_in_notebooks(heads, tmp_path):
    """Whose stdout is not a file, and cannot be reconfigured."""
    heads[0].save(tmp_path / "head.png")
    with redirect_stdout(io.StringIO()) as printed:
        assert command(tmp_path / "head.png", "--out", tmp_path / "out") == 0
    assert printed.getvalue().startswith("head.png  ")


def test_help_without_docstrings():
    words = [sys.executable, "-OO", "-m", "auto_fernet", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--detect" in done.stdout


# --- the installed package


def test_package_stands_alone(tmp_path, heads):
    """In a folder that holds nothing but the package, and without torch."""
    (tmp_path / "auto_fernet").symlink_to(ROOT / "auto_fernet")
    heads[0].save(tmp_path / "head.png")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'matplotlib', 'pandas')))\n"
        "from auto_fernet import Predictor\n"
        "print(Predictor().detect_emotions('head.png', [(56, 76, 148, 148)]))\n"
    )
    words, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[{'box': [56, 76, 148, 148], 'emotions': {'angry': ")


def test_wheel_holds_the_package_alone(tmp_path):
    pytest.importorskip("setuptools", minversion="68", reason="setuptools 68 is not installed")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
             "--disable-pip-version-check", "--wheel-dir", str(tmp_path / "out"), "."]  # fmt: skip
    # A copy: setuptools writes build/ and auto_fernet.egg-info/ beside the sources.
    copied = tmp_path / "copy"
    shutil.copytree(ROOT / "auto_fernet", copied / "auto_fernet")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copied)
    done = subprocess.run(words, cwd=copied, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"auto_fernet"}
    assert "auto_fernet/networks/auto_fernet_s.onnx" in names
    assert {"auto_fernet/command.py", "auto_fernet/py.typed"} <= set(names)
