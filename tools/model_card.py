"""Write the model card of the weights in checkpoints/: its README.md, from MANIFEST.json.

    python -m tools.model_card RUN...

A RUN is an evaluation of one network with `--amp off`: `ensemble.py --model_names NAME`,
`test_CK48.py --mode evaluate --checkpoint NAME` or `test_JAFFE.py --checkpoint NAME`. Its figures
go into the manifest, to the weights of the same sha256. Without RUN the card is written from what
the manifest holds; tools.export_weights does that too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import jinja2

from common import arguments
from common.cli import run_script
from common.manifest import MANIFEST, read_manifest, write_manifest
from common.page import read_summary
from common.weights import CHECKPOINTS
from data.types import CLASSES
from genotypes import Auto_FERNet, format_genotype
from runtime.errors import UserError, reading
from runtime.files import write_text

CARD = "README.md"
_KEPT = ("accuracy", "interval95", "images", "calibration_error", "without_copies")


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m tools.model_card")
    # fmt: off
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="the run folders of evaluations")
    add("--out", default=str(CHECKPOINTS), metavar="FOLDER",
        help="folder of weights and manifest, where README.md is written")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Store the figures of the runs and write the card; return the entries of the manifest."""
    for run in args.runs:
        store_evaluation(Path(run), Path(args.out))
    print(f"written: {write_card(Path(args.out))}")
    return read_manifest(Path(args.out))


def store_evaluation(run: Path, folder: Path) -> None:
    """Put the figures of an evaluation into the manifest of `folder`, in percent, by set and --tta.

    Raises UserError unless one network of the manifest was evaluated as it is, on whole sets and in
    float32, whose figures are the same on every processor.
    """
    summary = read_summary(run)
    if summary is None:
        raise UserError(f"{run}: no summary.json, expected the run folder of an evaluation")
    expected = "one network of the manifest, not fine-tuned, --amp off, no --limit_batches"
    with reading(run / "summary.json", expected):
        figures, details, entries = summary["figures"], summary["details"], read_manifest(folder)
        (weights,) = details.get("members", [details])
        changed = details.get("folds") or details.get("adapt_batch_norm")
        if changed or summary["flags"]["amp"] != "off" or any("of" in f for f in figures.values()):
            raise ValueError("another evaluation")
        named = [e for e in entries.values() if e["sha256"] == weights["sha256"]]
        if not named:
            raise ValueError(f"sha256 {weights['sha256']} is not in {folder / MANIFEST}")
        for entry in named:
            for split, figure in figures.items():
                kept = {name: figure[name] for name in _KEPT if name in figure}
                recall = {name: 100.0 * f["recall"] for name, f in figure["classes"].items()}
                by_views = entry.setdefault("evaluations", {}).setdefault(split, {})
                by_views[details["tta"]] = {**kept, "recall": recall}
    write_manifest(folder, entries)


def write_card(folder: Path) -> Path:
    """Write the card of the weights in `folder` from its manifest; return its path."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.ChainableUndefined,  # what a manifest does not say stays empty
        trim_blocks=True,
    )
    text = environment.get_template("model_card.md").render(
        entries=read_manifest(folder), classes=CLASSES, published=format_genotype(Auto_FERNet)
    )
    write_text(folder / CARD, text + "\n")
    return folder / CARD


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
