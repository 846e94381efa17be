"""report.html: its figures are those of summary.json, and its links lead to files."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from fer2013_files import write_small_table
from runs import TRAIN, cut, finish, here

import ensemble
import search
from common.page import describe_time, read_summary, write_page
from runtime.files import write_rows


class Reader(HTMLParser):
    """The cells of all tables, the links, and whether anything is loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._cell = tag == "td" or (self._cell and tag == "code")
        values = dict(attrs)
        self.links += [values["href"]] if "href" in values else []
        self.loads += [values["src"]] if "src" in values else []

    def handle_data(self, data):
        if self._cell:
            self.cells.append(data.strip())
            self._cell = False


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = write_small_table(folder, each=12)
    words = [word.format(data=data, out=folder) for word in TRAIN]
    finish([sys.executable, *words, "--save", "a <b>&1"], folder / "log")
    return folder / "a <b>&1", data


def test_page_of_a_training_has_the_figures_of_its_summary(trained):
    folder, _ = trained
    summary = json.loads((folder / "summary.json").read_bytes())
    text = (folder / "report.html").read_text("utf-8")
    page = Reader(text)
    for figure in summary["figures"].values():
        for key in ("accuracy", "interval95", "calibration_error"):
            assert f"{figure[key]:.2f}" in page.cells
        for values in figure["classes"].values():
            assert f"{100 * values['recall']:.1f}" in page.cells
    for fact in (summary["genotype"], summary["machine"], str(summary["parameters"])):
        assert fact.replace("'", "&#39;") in text
    assert "a &lt;b&gt;&amp;1" in text
    assert "<b>" not in text
    assert "http-equiv" not in text  # only the page of a running one reloads itself
    names = {path.name for path in folder.iterdir()} - {"report.html"}
    assert {unquote(link) for link in page.links} == names
    assert len(page.loads) == len(list(folder.glob("*.png")))
    assert all(source.startswith("data:image/png;base64,") for source in page.loads)


def test_page_of_a_stopped_run_has_its_last_epoch(tmp_path):
    data = write_small_table(tmp_path, each=12)
    words = [word.format(data=data, out=tmp_path) for word in TRAIN]
    cut([sys.executable, *words, "--save", "x"], "epoch 2/3", 2, tmp_path / "log")
    text = (tmp_path / "x/report.html").read_text("utf-8")
    assert re.search(r"epoch 2 of 3 is done; about \d+ s left", text)
    assert {"train_accuracy", "PublicTest_accuracy"} <= set(Reader(text).cells)


def test_page_of_an_ensemble_has_its_members(trained, tmp_path):
    folder, data = trained
    flags = ["--model_names", f"{folder},{folder}/weights.pt", "--data", str(data)]
    assert here(ensemble, [*flags, "--model_path", str(tmp_path), "--save", "e"]) == 0
    cells = Reader((tmp_path / "e/report.html").read_text("utf-8")).cells
    assert {f"1 {folder}/best_val_weights.pt", f"2 {folder}/weights.pt"} <= set(cells)


def test_page_has_the_most_frequent_changes_of_labels(trained, tmp_path):
    folder, _ = trained
    rows = [
        {"epoch": 2, "given": "fear", "new": "sad", "labels": 30},
        {"epoch": 3, "given": "fear", "new": "sad", "labels": 4},
        {"epoch": 3, "given": "fear", "new": "fear", "labels": 1000},
    ]
    write_rows(rows, folder / "changes.csv")
    write_page(tmp_path / "page.html", "x", {folder: read_summary(folder)})
    (folder / "changes.csv").unlink()
    cells = Reader((tmp_path / "page.html").read_text("utf-8")).cells
    assert cells[cells.index("fear", cells.index("34") - 2) :][:3] == ["fear", "sad", "34"]


def test_times_are_short_for_readers():
    texts = [describe_time(seconds) for seconds in (3.2, 89, 100, 3599, 11_100)]
    assert texts == ["3 s", "89 s", "2 min", "1 h 0 min", "3 h 5 min"]


def test_search_says_how_its_network_is_trained_next(tmp_path, capsys):
    data = write_small_table(tmp_path, each=12)
    flags = "--init_channels 2 --layers 3 --limit_batches 1 --epochs 1 --arch_warmup_epochs 0"
    words = [*flags.split(), "--data", str(data), "--model_path", str(tmp_path), "--save"]
    assert here(search, [*words, "small", "--recipe", "laptop"]) == 0
    printed = capsys.readouterr().err
    assert f"next: python train_FER2013.py --arch {tmp_path}/small --init_channels 16" in printed
