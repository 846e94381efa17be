"""Draw the normal and the reduction cell of a genotype as `normal.png` and `reduction.png`.

python -m tools.cells Auto_FERNet --out images
python -m tools.cells saved_models/search-EXP --out saved_models/search-EXP
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import cli
from common.plots import draw_cell
from genotypes import NAMED, format_genotype, resolve_genotype


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.cells", description="Draw the two cells of a genotype."
    )
    parser.add_argument(
        "arch",
        metavar="ARCH",
        help=f"what to draw: a name ({', '.join(NAMED)}), a literal Genotype(...), a genotype file "
        "or the run folder of a search",
    )
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="where the pictures go; made when missing"
    )
    return parser


def main(args: argparse.Namespace) -> dict[str, str]:
    """Draw both cells; returns the genotype's text and the two files' paths."""
    genotype = resolve_genotype(args.arch)
    folder = cli.make_folder("--out", args.out)
    # A literal has no name that a title could bear.
    name = (
        "" if args.arch.lstrip().startswith("Genotype") else f"{Path(args.arch).resolve().stem}: "
    )
    files = {"normal": folder / "normal.png", "reduction": folder / "reduction.png"}
    draw_cell(genotype.normal, genotype.normal_concat, files["normal"], f"{name}normal cell")
    draw_cell(genotype.reduce, genotype.reduce_concat, files["reduction"], f"{name}reduction cell")
    print(f"drawn: {files['normal']} {files['reduction']}")
    return {"genotype": format_genotype(genotype), **{key: str(f) for key, f in files.items()}}


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
