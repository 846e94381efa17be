"""report.html: runs on one page, from the files of their folders; pictures are inside."""

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
SUMMARY = "summary.json"
_FIRST = ("curves", "decisions", "normal", "reduction")  # of the pictures
_SHRINK = 0.53  # from the pixels of a picture to those of the page
_CHANGES = 10  # pairs of classes in the table of changed labels


def write_page(
    path: Path,
    title: str,
    summaries: Mapping[Path, Mapping[str, Any]],
    *,
    status: str = "",
    overview: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the page `path` over runs, by folder what summary.json says or will begin with; atomic.

    `status` stands above the page of a run that is not at its end, which then reloads itself;
    `overview` are the rows of a table above several runs.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.ChainableUndefined,  # figures of which some runs have none stay empty
        autoescape=True,
        trim_blocks=True,
    )
    environment.filters["time"] = describe_time
    runs = [_describe(*run, path.parent) for run in summaries.items()]
    page = environment.get_template("page.html")
    text = page.render(title=title, status=status, overview=overview, runs=runs)
    write_text(path, text)


def _describe(folder: Path, summary: Mapping[str, Any], page: Path) -> dict[str, Any]:
    """What the template shows of a run, on a page in the folder `page`."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.endswith(TEMPORARY))
    names = [path.name for path in files if path.name != PAGE]
    pictures = [path for path in files if path.suffix == ".png"]
    pictures.sort(key=lambda p: _FIRST.index(p.stem) if p.stem in _FIRST else len(_FIRST))
    changes = {}
    if "changes.csv" in names:
        table = pd.read_csv(folder / "changes.csv").query("given != new and labels > 0")
        changes = table.groupby(["given", "new"])["labels"].sum().nlargest(_CHANGES).to_dict()
    return {
        "name": folder.name,
        "summary": {"figures": {}, "details": {}, **summary},
        "changes": changes,
        "pictures": [(path.name, *_embed(path)) for path in pictures],
        "files": [(name, quote(os.path.relpath(folder / name, page))) for name in names],
    }


def _embed(path: Path) -> tuple[str, int]:
    """A picture in base64, and its width on the page."""
    with Image.open(path) as image:
        return base64.b64encode(path.read_bytes()).decode(), round(_SHRINK * image.width)


def describe_time(seconds: float) -> str:
    """A duration for readers: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of a run; None where it has not ended."""
    path = folder / SUMMARY
    return json.loads(path.read_bytes()) if path.is_file() else None
