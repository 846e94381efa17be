"""Draw the normal and the reduction cell of a genotype as `normal.png` and `reduction.png`.

python -m tools.cells Auto_FERNet --out images
python -m tools.cells saved_models/search-EXP --out saved_models/search-EXP
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import cli
from common.arguments import new_parser
from common.plots import draw_cell
from genotypes import NAMED, format_genotype, resolve_genotype
from runtime.files import make_folder


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__, "python -m tools.cells")
    # fmt: off
    parser.add_argument("arch", metavar="ARCH",
        help=f"a name ({', '.join(NAMED)}), a literal Genotype(...), a file with one, such "
        "as a log, FILE:NAME for one of several, or the run of a search")
    parser.add_argument("--out", required=True, metavar="FOLDER",
        help="folder of the pictures, created if missing")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, str]:
    """Draw both cells; return the genotype's text and the paths of the files."""
    genotype = resolve_genotype(args.arch)
    folder = make_folder("--out", args.out)
    literal = args.arch.lstrip().startswith("Genotype")
    stem = Path(args.arch).resolve().stem.encode(errors="backslashreplace").decode()
    name = "" if literal else f"{stem}: "
    files = {"normal": folder / "normal.png", "reduction": folder / "reduction.png"}
    draw_cell(genotype.normal, genotype.normal_concat, files["normal"], f"{name}normal cell")
    draw_cell(genotype.reduce, genotype.reduce_concat, files["reduction"], f"{name}reduction cell")
    print(f"drawn: {files['normal']} {files['reduction']}")
    return {"genotype": format_genotype(genotype), **{key: str(f) for key, f in files.items()}}


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
