"""The cells of docs/notebook.ipynb run, with the backend of plots that notebooks set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from runs import ROOT

CELLS = json.loads((ROOT / "docs" / "notebook.ipynb").read_text("utf-8"))["cells"]
SHORT = " --limit_batches 2 --init_channels 4 --device cpu"


def test_cells_run(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("cv2")
    shown: list[str] = []
    display = ModuleType("IPython.display")
    display.Image = lambda path: shown.append(path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **backend}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(ROOT / "images")
    names: dict[str, object] = {}
    for cell in CELLS:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code" or cell["metadata"].get("tags"):
            continue
        if text.startswith("!python "):
            words = text.removeprefix("!python ").split()
            if words[0].endswith(".py"):
                words = [str(ROOT / words[0]), *words[1:], *SHORT.split()]
            environment["PYTHONPATH"] = str(ROOT)
            done = subprocess.run([sys.executable, *words], env=environment, capture_output=True)
            assert done.returncode == 0, done.stderr.decode()
        else:
            exec(text, names)
    assert all((tmp_path / path).is_file() for path in shown)
    assert len(shown) == 2


def test_every_code_cell_is_plain():
    kinds = SimpleNamespace(code=0, markdown=0)
    for cell in CELLS:
        setattr(kinds, cell["cell_type"], getattr(kinds, cell["cell_type"]) + 1)
        assert not cell.get("outputs")
    assert (kinds.code, kinds.markdown) == (8, 2)
