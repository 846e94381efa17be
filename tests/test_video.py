"""Videos: their times and pixels, faces followed, and the copy and the table that are written."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from runs import ROOT
from test_package import command, needs_opencv

from auto_fernet import video
from auto_fernet.video import Tracker, VideoOutput, VideoReader

MEDIA = Path(__file__).parent / "media"  # drawn faces: happy in the first half, then surprise


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def length(path: Path) -> float:
    """Seconds that a video plays."""
    import cv2

    copy = cv2.VideoCapture(str(path))
    return copy.get(cv2.CAP_PROP_FRAME_COUNT) / copy.get(cv2.CAP_PROP_FPS)


def test_tracker_follows_forgets_and_numbers_faces():
    tracker = Tracker(patience=0.2)
    left, right = (0, 0, 10, 10), (50, 0, 10, 10)
    assert [t.number for t in tracker.update([left, right], 0.0)] == [0, 1]
    assert [t.number for t in tracker.update([(51, 0, 10, 10), (1, 0, 10, 10)], 0.1)] == [1, 0]
    assert [t.number for t in tracker.update([right], 0.2)] == [1]
    assert [t.number for t in tracker.update([left, right], 0.3)] == [0, 1]  # missed once
    for seconds in (0.4, 0.45, 0.55):
        tracker.update([right], seconds)
    assert [t.number for t in tracker.update([left], 0.6)] == [2]  # gone for longer than patience
    assert [t.number for t in tracker.update([left], 9.0)] == [2]  # no frame was without it
    assert tracker.count == 3


def test_track_averages():
    track = Tracker(0).update([(0, 0, 9, 9)], 0.0)[0]
    for p in ([1.0, 0.0], [0.0, 1.0], [0.0, 1.0]):
        track.add(np.array(p), keep=0.5)
    assert track.probabilities.tolist() == [0.25, 0.75]


@needs_opencv
def test_video_of_moving_faces(heads, tmp_path, capsys):
    import cv2

    code, path = cv2.VideoWriter_fourcc(*"mp4v"), tmp_path / "two.mp4"
    writer = cv2.VideoWriter(str(path), code, 20, (480, 360))
    small = [np.asarray(head.resize((200, 200))) for head in heads[:2]]
    for t in range(12):
        frame = np.full((360, 480, 3), 110, np.uint8)
        frame[20 + t : 220 + t, 5 * t : 200 + 5 * t] = small[0][:, :, None]
        frame[140:340, 270 - 3 * t : 470 - 3 * t] = small[1][:, :, None]
        writer.write(frame)
    writer.release()
    assert command("--video", path, "--out", tmp_path / "out") == 0
    assert "12 frames" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "two-faces.csv").open()))
    assert {row["face"] for row in rows} == {"0", "1"}
    assert len(rows) >= 22  # two faces a frame, but for one that may be missed
    by_face = {number: [row for row in rows if row["face"] == number] for number in "01"}
    for number, each in by_face.items():
        # Each number stays with its face, which moves to one side only.
        steps = np.diff([int(row["x"]) for row in each])
        right = int(each[0]["x"]) < 150
        assert (steps.mean() > 3) == right, number
        assert (steps.mean() < -1) == (not right), number
    copy = cv2.VideoCapture(str(tmp_path / "out" / "two-faces.mp4"))
    assert (copy.get(cv2.CAP_PROP_FRAME_COUNT), copy.get(cv2.CAP_PROP_FPS)) == (12, 20)
    blue = [int(x) for x in copy.read()[1][int(rows[0]["y"]) + 60, int(rows[0]["x"])]]
    assert blue[0] > blue[2] + 60


@needs_opencv
def test_what_is_no_video_is_one_line(tmp_path, capfd):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    for name, said in (("x.mp4", "no frame can be read"), ("y.mp4", "no such file")):
        assert command("--video", tmp_path / name, "--out", tmp_path / "out") == 2
        assert said in capfd.readouterr().err.splitlines()[-1]


# --- what other devices record


@needs_opencv
@pytest.mark.parametrize("name, last, count", [
    ("recorder.webm", 3.941, 60),  # states 1,000 frames a second and 4,021 frames
    ("phone_vfr.mp4", 3.890, 60),  # 30 frames a second, then 10
    ("lapse.mp4", 38.0, 20),
    ("wide_pixels.mp4", 0.967, 30),  # of twice their height
])  # fmt: skip
def test_times_and_pixels_are_those_of_the_file(name, last, count, tmp_path, capsys):
    assert command("--video", MEDIA / name, "--out", tmp_path) == 0
    printed = capsys.readouterr()
    assert f"{count} frames" in printed.out
    assert "ended after" not in printed.err
    stem = name.split(".")[0]
    rows = table(tmp_path / f"{stem}-faces.csv")
    assert {row["face"] for row in rows} == {"0"}
    assert float(rows[-1]["seconds"]) == pytest.approx(last, abs=0.001)
    named = [row["expression"] for row in rows]
    assert set(named[: count // 2]) == {"happy"}
    assert named[-1] == "surprise"
    assert length(tmp_path / f"{stem}-faces.mp4") == pytest.approx(last * count / (count - 1), 0.02)
    assert VideoReader(str(MEDIA / name)).size == (320, 240)


@needs_opencv
def test_rates_of_slow_motion_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "follow", lambda *_: [])
    assert command("--video", MEDIA / "slowmo211.mp4", "--out", tmp_path) == 0
    assert length(tmp_path / "slowmo211-faces.mp4") == pytest.approx(60 / 211.222, 0.01)


@needs_opencv
def test_table_outlives_a_video_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(video, "RATES", (1e-9, 1e-9))  # which no encoder takes
    assert command("--video", MEDIA / "lapse.mp4", "--out", tmp_path) == 2
    assert "lapse-faces.mp4: cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert len(table(tmp_path / "lapse-faces.csv")) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["lapse-faces.csv"]


@needs_opencv
def test_frames_are_shown_at_their_times(tmp_path):
    import cv2

    output = VideoOutput(tmp_path / "x.mp4", 20, (64, 48), show=False)
    for gray, seconds in ((0, 0.0), (80, 0.5), (160, 0.51), (240, 0.52), (250, 0.53), (200, 1.0)):
        output.add(Image.new("RGB", (64, 48), (gray, gray, gray)), seconds)
    output.close()
    output.finish()
    capture, grays = cv2.VideoCapture(str(tmp_path / "x.mp4")), []
    while (read := capture.read())[0]:
        grays.append(read[1].mean())
    expected = [0] * 10 + [80, 160] + [250] * 8 + [200]
    assert np.allclose(grays, expected, atol=8)


@needs_opencv
def test_camera_is_timed_by_the_clock(monkeypatch):
    """One that states 30 frames a second and delivers 10."""
    import cv2

    frames = iter([(True, np.zeros((48, 64, 3), np.uint8))] * 20)
    camera = SimpleNamespace(
        read=lambda: next(frames, (False, None)),
        get=lambda name: 30.0 if name == cv2.CAP_PROP_FPS else 0.0,
        release=lambda: None,
    )
    clock = iter(np.arange(100) / 10)
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: camera)
    monkeypatch.setattr(video.time, "monotonic", lambda: next(clock))
    reader = VideoReader("0")
    assert reader.rate == pytest.approx(10)
    assert [seconds for seconds, _ in reader] == pytest.approx(np.arange(20) / 10)


@needs_opencv
def test_video_that_ends_early_is_told(tmp_path, capsys):
    import cv2

    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for _ in range(40):
        writer.write(noise)
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert command("--video", path, "--out", tmp_path) == 0
    assert "of 4.0 seconds" in capsys.readouterr().err.splitlines()[-1]


@needs_opencv
def test_addresses_go_to_opencv():
    handler = partial(SimpleHTTPRequestHandler, directory=str(MEDIA))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        reader = VideoReader(f"http://127.0.0.1:{server.server_port}/recorder.webm?x=/y")
        assert reader.name == "recorder"
        assert [seconds for seconds, _ in reader][-1] == pytest.approx(3.941)
    finally:
        server.shutdown()
        server.server_close()


@needs_opencv
def test_interrupted_video_leaves_what_was_written_before(tmp_path, monkeypatch, capsys):
    old = tmp_path / "lapse-faces.csv"
    old.write_text("of an earlier run")
    calls = iter(range(5))

    def follow(*_):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(video, "follow", follow)
    assert command("--video", MEDIA / "lapse.mp4", "--out", tmp_path) == 130
    assert old.read_text() == "of an earlier run"
    assert "lapse-faces.csv: of an earlier run, will be replaced" in capsys.readouterr().err
    assert len(list(tmp_path.glob("lapse-faces.*.part*"))) == 2


@needs_opencv
def test_table_is_utf_8_in_every_locale(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from auto_fernet import video\n"
        "detector = type('D', (), {'__call__': lambda *_: [(0, 0, 9, 9)],"
        " 'square': lambda _, rect: rect})()\n"
        "video.annotate_video(video.VideoReader(sys.argv[1]), detector,"
        " lambda faces: np.ones((len(faces), 1)), ['\\u0436'], Path(sys.argv[2]))\n"
    )
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-c", code, str(MEDIA / "lapse.mp4"), str(tmp_path)]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {row["expression"] for row in table(tmp_path / "lapse-faces.csv")} == {"ж"}
