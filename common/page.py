"""report.html: a run on one page, from the files of its folder; pictures are inside."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from PIL import Image

from runtime.files import TEMPORARY, write_text

PAGE = "report.html"
_FACTS = ("command", "commit", "machine", "protocol", "seed", "genotype", "parameters", "epochs")
_FIRST = ("curves", "decisions", "normal", "reduction", "alphas_normal", "alphas_reduce")
_DOTS = 180  # of a picture in an inch of the page
_CHANGES = 10  # pairs of classes in the table of changed labels

Table = dict[str, Any]  # title, columns and rows


def write_page(
    path: Path,
    title: str,
    runs: Sequence[Mapping[str, Any]],
    *,
    status: str = "",
    overview: Table | None = None,
) -> None:
    """Write the page `path` over `runs`, of `describe_folder`; atomic.

    `status` stands above the page of a run that is not at its end, which then reloads itself.
    `overview` is a table above the runs.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(
        "page.html"
    )
    write_text(path, template.render(title=title, status=status, overview=overview, runs=runs))


def write_run_page(folder: Path, head: Mapping[str, Any], status: str = "") -> None:
    """Write `folder`/report.html; `head` is what summary.json says or will begin with."""
    title = f"{head['script']}: {folder.name}"
    write_page(folder / PAGE, title, [describe_folder(folder, head, folder)], status=status)


def describe_folder(folder: Path, summary: Mapping[str, Any], page: Path) -> dict[str, Any]:
    """What a page in the folder `page` shows of a run: facts, tables, pictures, links to files."""
    facts = [(name, summary[name]) for name in _FACTS if summary.get(name) not in (None, "")]
    if summary.get("checkpoints"):
        facts.append(("weights read", ", ".join(summary["checkpoints"])))
    if summary.get("seconds"):
        facts.append(("time", describe_time(summary["seconds"])))
    tables = [*_figure_tables(summary.get("figures", {})), *_member_tables(summary)]
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.endswith(TEMPORARY))
    pictures = [path for path in files if path.suffix == ".png"]
    pictures.sort(key=lambda p: _FIRST.index(p.stem) if p.stem in _FIRST else len(_FIRST))
    names = [path.name for path in files]
    if "metrics.csv" in names and not summary.get("figures"):
        record = pd.read_csv(folder / "metrics.csv").iloc[-1].dropna()
        rows = [[name, f"{value:.6g}"] for name, value in record.items()]
        tables.append({"title": "last epoch", "columns": ["", ""], "rows": rows})
    if "changes.csv" in names:
        tables.append(_changes_table(folder / "changes.csv"))
    return {
        "name": folder.name,
        "facts": facts,
        "tables": tables,
        "pictures": [_embed(path) for path in pictures],
        "files": [
            (path.name, quote(os.path.relpath(path, page)))
            for path in files
            if path.name not in (PAGE, "summary.json")
        ]
        + [("summary.json", quote(os.path.relpath(folder / "summary.json", page)))],
    }


def _figure_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Top-1 and calibration of each split or set, and the figures of its classes."""
    rows, tables = [], []
    for name, figure in figures.items():
        whole = figure.get("pooled", figure)  # of folds, all test images together
        own = figure.get("without_copies", {})
        values = [figure.get("interval95"), own.get("accuracy"), whole.get("calibration_error")]
        rows.append(
            [name, f"{figure['accuracy']:.2f}", *("" if v is None else f"{v:.2f}" for v in values)]
        )
        rows[-1].insert(3, f"{figure['images']:,}")
        if "folds" in figure:
            columns = [f"fold {number}" for number in range(1, len(figure["folds"]) + 1)]
            each = [f"{accuracy:.2f}" for accuracy in figure["folds"]]
            tables.append({"title": f"{name}, top-1 %", "columns": columns, "rows": [each]})
        if "classes" in whole:
            columns = ["", "precision %", "recall %", "F1 %"]
            by_class = [
                [label, *(f"{100 * value:.1f}" for value in values.values())]
                for label, values in whole["classes"].items()
            ]
            tables.append({"title": f"{name} by class", "columns": columns, "rows": by_class})
    if not rows:
        return []
    columns = ["", "top-1 %", "± 95 %", "images", "without copies %", "calibration error %"]
    return [{"title": "figures", "columns": columns, "rows": rows}, *tables]


def _member_tables(summary: Mapping[str, Any]) -> list[Table]:
    """The members of an ensemble, and how often two of them agree."""
    members = summary.get("details", {}).get("members", [])
    if not members:
        return []
    splits = list(members[0]["figures"])
    columns = ["member", "parameters", *(f"{split} %" for split in splits)]
    columns += [f"like {k + 1} %" for k in range(len(members))]
    alike = summary["details"]["agreement"][splits[-1]]
    rows = [
        [member["checkpoint"], f"{member['parameters']:,}"]
        + [f"{figure['accuracy']:.2f}" for figure in member["figures"].values()]
        + [f"{value:.1f}" for value in alike[k]]
        for k, member in enumerate(members)
    ]
    return [{"title": f"members, agreement on {splits[-1]}", "columns": columns, "rows": rows}]


def _changes_table(path: Path) -> Table:
    """The pairs of classes between which most labels were changed, over all epochs."""
    table = pd.read_csv(path)
    changed = table[table["given"] != table["new"]]
    sums = changed.groupby(["given", "new"])["labels"].sum().sort_values(ascending=False)
    rows = [[given, new, f"{count:,}"] for (given, new), count in sums.items() if count]
    return {
        "title": f"changed labels: {changed['labels'].sum():,} of {table['labels'].sum():,}",
        "columns": ["given", "trained on", "labels"],
        "rows": rows[:_CHANGES],
    }


def _embed(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        width = round(96 * image.width / _DOTS)
    return {"name": path.name, "width": width, "data": base64.b64encode(path.read_bytes()).decode()}


def describe_time(seconds: float) -> str:
    """A duration for readers: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of a run; None where it has not ended."""
    path = folder / "summary.json"
    return json.loads(path.read_bytes()) if path.is_file() else None
