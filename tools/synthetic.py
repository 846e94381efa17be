"""Write the synthetic sets in the forms of the real ones, or draw samples of them.

    python -m tools.synthetic --out FOLDER --form all --seed 0
    python -m tools.synthetic --sheet sheet.png

The first writes files for --data of every script; the second draws sample faces.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from common import cli
from common.arguments import new_parser
from data.synthetic.cross import draw_ck48, draw_jaffe
from data.synthetic.fer2013 import Drawing, draw_fer2013, draw_records, draw_votes
from data.synthetic.writers import (
    write_archive,
    write_ck48,
    write_csv,
    write_folder,
    write_jaffe,
    write_votes,
)
from data.types import CLASSES
from runtime.errors import UserError
from runtime.files import atomic_write, make_folder

# By form: the file or folder below --out, a name that --data looks for; what draws and writes it.
FORMS: dict[str, tuple[str, Callable[[int], Any], Callable[[Any, Path], None]]] = {
    "csv": ("fer2013.csv", draw_fer2013, write_csv),
    "kaggle": ("icml_face_data.csv", draw_fer2013, partial(write_csv, kaggle=True)),
    "folder": ("fer2013", draw_fer2013, write_folder),
    "zip": ("fer2013.zip", draw_fer2013, write_archive),
    "tar": ("fer2013.tar", draw_fer2013, write_archive),
    "tar.gz": ("fer2013.tar.gz", draw_fer2013, write_archive),
    "tar.xz": ("fer2013.tar.xz", draw_fer2013, write_archive),
    "votes": ("fer2013new.csv", draw_votes, write_votes),
    "ck48": ("CK+48", draw_ck48, write_ck48),
    "jaffe": ("jaffe", draw_jaffe, write_jaffe),
}
SHEET_COLUMNS = 14


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "python -m tools.synthetic")
    # fmt: off
    parser.add_argument("--out", metavar="FOLDER",
        help="folder to write to, created if missing (default: write no sets)")
    parser.add_argument("--form", choices=[*FORMS, "all"], default="csv",
        help="form to write; csv is the original form of the set")
    parser.add_argument("--sheet", metavar="FILE.png", help="picture of sample faces to draw")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
        help="seed of the set; --data synthetic uses 0")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Write the forms and the sheet; return {form or "sheet": path}."""
    if args.out is None and args.sheet is None:
        raise UserError("nothing to do; expected --out FOLDER or --sheet FILE.png")
    written = {}
    if args.out is not None:
        folder = make_folder("--out", args.out)
        for form in FORMS if args.form == "all" else [args.form]:
            name, draw, write = FORMS[form]
            written[form] = folder / name
            write(draw(args.seed), written[form])
            print(f"{form}: {written[form]}")
    if args.sheet is not None:
        written["sheet"] = Path(args.sheet)
        sheet = draw_sheet(args.seed)
        atomic_write(args.sheet, lambda file: sheet.save(file, "PNG"))
        print(f"sheet: {args.sheet}")
    return written


def draw_sheet(seed: int = 0) -> Image.Image:
    """A row of training faces per class, by rising intensity; wrong labels in red."""
    pictures = draw_fer2013(seed)["Training"].images[:, 0].numpy()
    drawing = draw_records(seed)["Training"]
    side, gap, margin = 96, 14, 64
    sheet = Image.new("RGB", (margin + SHEET_COLUMNS * side, len(CLASSES) * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for label, name in enumerate(CLASSES):
        top = label * (side + gap)
        pen.text((4, top + side // 2), name, fill="black")
        for column, row in enumerate(_chosen(drawing, label)):
            left = margin + column * side
            face = Image.fromarray(pictures[row]).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(face, (left, top))
            if drawing.labels[row] != label:
                pen.rectangle((left, top, left + side - 1, top + side - 1), outline="red", width=3)
                given = f"given {CLASSES[drawing.labels[row]]}"
                pen.text((left + 2, top + side), given, fill="red")
    return sheet


def _chosen(drawing: Drawing, label: int) -> np.ndarray:
    """Rows of class `label` at evenly spaced ranks of intensity, lowest first."""
    rows = np.flatnonzero(drawing.true_labels == label)
    rows = rows[np.argsort(drawing.intensity[rows], kind="stable")]
    return rows[np.linspace(0, len(rows) - 1, SHEET_COLUMNS).astype(np.int64)]


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
