"""Write the synthetic sets in the forms that users have the real ones in.

    python -m tools.synthetic --out FOLDER --form all --seed 0
    python -m tools.synthetic --sheet sheet.png

The first writes files that every script's --data reads; the second draws a contact sheet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from common import cli
from data.fer2013 import CLASSES
from data.synthetic import Drawing, draw_fer2013, draw_records, draw_votes
from data.synthetic_cross import draw_ck48, draw_jaffe
from data.writers import (
    write_archive,
    write_ck48,
    write_csv,
    write_folder,
    write_jaffe,
    write_votes,
)
from utils import UserError, atomic_write

# What each form is called below --out: the names that --data looks for.
FORMS = {
    "csv": "fer2013.csv",
    "kaggle": "icml_face_data.csv",
    "folder": "fer2013",
    "zip": "fer2013.zip",
    "tar": "fer2013.tar",
    "tar.gz": "fer2013.tar.gz",
    "tar.xz": "fer2013.tar.xz",
    "votes": "fer2013new.csv",
    "ck48": "CK+48",
    "jaffe": "jaffe",
}
SHEET_COLUMNS = 14


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.synthetic", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="folder to write to, made when missing (default: no sets)"
    )
    parser.add_argument(
        "--form",
        choices=[*FORMS, "all"],
        default="csv",
        help="what to write below --out (default: csv, the set's original form)",
    )
    parser.add_argument("--sheet", metavar="FILE.png", help="contact sheet to draw (default: none)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="which set to draw (default: 0, the one that --data synthetic draws)",
    )
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Write what is asked for; returns {form or "sheet": Path written}."""
    if args.out is None and args.sheet is None:
        raise UserError("nothing to do; expected --out FOLDER or --sheet FILE.png")
    written = {}
    if args.out is not None:
        folder = cli.make_folder("--out", args.out)
        for form in FORMS if args.form == "all" else [args.form]:
            written[form] = folder / FORMS[form]
            write_form(form, written[form], args.seed)
            print(f"{form}: {written[form]}")
    if args.sheet is not None:
        written["sheet"] = Path(args.sheet)
        sheet = draw_sheet(args.seed)
        atomic_write(args.sheet, lambda file: sheet.save(file, "PNG"))
        print(f"sheet: {args.sheet}")
    return written


def write_form(form: str, path: Path, seed: int) -> None:
    """Draw the set of `seed` and write it to `path` in the `form`, a key of FORMS."""
    if form == "votes":
        write_votes(draw_votes(seed), path)
    elif form == "ck48":
        write_ck48(draw_ck48(seed), path)
    elif form == "jaffe":
        write_jaffe(draw_jaffe(seed), path)
    elif form == "folder":
        write_folder(draw_fer2013(seed), path)
    elif form in ("csv", "kaggle"):
        write_csv(draw_fer2013(seed), path, kaggle=form == "kaggle")
    else:
        write_archive(draw_fer2013(seed), path)


def draw_sheet(seed: int = 0) -> Image.Image:
    """A row of training faces for each class, fainter expressions left, wrong labels in red."""
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
    """Rows of the class, evenly over its intensities, lowest first."""
    rows = np.flatnonzero(drawing.true_labels == label)
    rows = rows[np.argsort(drawing.intensity[rows], kind="stable")]
    return rows[np.linspace(0, len(rows) - 1, SHEET_COLUMNS).astype(np.int64)]


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
