"""Compute the Facial Expression Similarity of every two classes from the FER+ votes.

    python -m tools.fes fer2013new.csv --out images
    python -m tools.fes fer2013new.csv --usage Training

Prints the matrix: the published one, of all rows, or that of the rows of --usage. With --out also
writes `fes.csv`, which --fes_matrix reads, and `FES.png`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import pandas as pd

from common import cli
from data.fes import fes_matrix, load_votes, save_fes
from data.readers import CLASSES, SPLITS
from tools.plots_relabel import draw_fes


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fes", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("votes", metavar="VOTES.csv", help="the votes of FER+: fer2013new.csv")
    parser.add_argument(
        "--usage",
        choices=SPLITS,
        help="rows to use (default: all, as published; the clean protocol uses Training)",
    )
    parser.add_argument(
        "--per_image",
        action="store_true",
        help="of all rows, divide by the number of images, as the formula says (default: by one "
        "more, the lines of the file with its header, as the published figures do)",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where fes.csv and FES.png go, made when missing (default: the matrix is only "
        "printed)",
    )
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print and write the matrix; returns it, the number of images and the files' paths."""
    votes = load_votes(args.votes, args.usage)
    as_published = args.usage is None and not args.per_image
    matrix = fes_matrix(votes, len(votes) + as_published)
    rows = "all" if args.usage is None else args.usage
    print(f"FES of {len(votes)} images ({rows} rows)")
    table = pd.DataFrame(matrix, index=CLASSES, columns=CLASSES)
    print(table.to_string(float_format="{:.8f}".format))
    written: dict[str, Any] = {"matrix": matrix, "images": len(votes)}
    if args.out is not None:
        folder = cli.make_folder("--out", args.out)
        save_fes(matrix, folder / "fes.csv")
        title = f"Facial expression similarity, {rows} rows ({len(votes):,} images)"
        draw_fes(matrix, CLASSES, folder / "FES.png", title)
        written |= {"table": str(folder / "fes.csv"), "picture": str(folder / "FES.png")}
        print(f"written: {written['table']} {written['picture']}")
    return written


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
