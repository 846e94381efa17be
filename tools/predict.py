"""Name the expression on pictures of your own.

    python -m tools.predict PICTURE_OR_FOLDER --checkpoint NAME[,NAME...]

A picture is a face that fills it, framed about as in FER2013. Prints one line per picture, the
most likely expression and the probabilities of all classes, and writes `predictions.csv` and
`faces.png`, a contact sheet, below --out. The logits of several checkpoints are averaged as by
ensemble.py. In a folder, files that are no pictures are named and left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import arguments
from common.cli import make_folder, resolve_device, run_script
from common.plots import draw_faces
from common.weights import load_members, network_flags
from data.augment import to_float
from data.jaffe import Box, check_box
from data.pictures import find_pictures, load_picture
from data.views import tta_predict
from engine import Predict
from utils import UserError, write_rows

BATCH = 64


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m tools.predict")
    # fmt: off
    add = parser.add_argument
    add("pictures", metavar="PICTURE_OR_FOLDER", help="a picture, or a folder of pictures")
    add("--checkpoint", type=arguments.names, required=True, metavar="X,Y,...",
        help="trained networks, named as for test_JAFFE.py; the logits of several are averaged")
    add("--model_path", default="saved_models", metavar="FOLDER", help="where run folders lie")
    add("--crop", type=arguments.box, metavar="LEFT,TOP,RIGHT,BOTTOM|none",
        help="part of the largest centred square to use, in 256ths of it (default: all of it)")
    add("--out", default="predictions", metavar="FOLDER",
        help="folder of the table and the contact sheet, created if missing")
    # fmt: on
    arguments.add_network_arguments(parser)
    arguments.add_layers_argument(parser)
    arguments.add_tta_argument(parser)
    arguments.add_device_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Predict; return the rows of the table and the paths of the files."""
    check_box(args.crop)
    device = resolve_device(args)
    predict, classes = load_members(
        "--checkpoint", args.checkpoint, device, layers=args.layers, **network_flags(args)
    )
    paths, images = read_pictures(args.pictures, args.crop)
    out = make_folder("--out", args.out)
    p = probabilities(tta_predict(predict, args.tta), images, device)
    # File names may hold anything, such as line breaks.
    names = [path.name if path.name.isprintable() else repr(path.name) for path in paths]
    rows = [
        {"picture": name, "expression": classes[np.argmax(row)]}
        | dict(zip(classes, row, strict=True))
        for name, row in zip(names, p.tolist(), strict=True)
    ]
    widest, longest = max(map(len, names)), max(map(len, classes))
    for row in rows:
        shares = "  ".join(f"{name} {100 * row[name]:.1f}" for name in classes)
        print(f"{row['picture']:<{widest}}  {row['expression']:<{longest}}  {shares}")
    table, sheet = out / "predictions.csv", out / "faces.png"
    write_rows(rows, table)
    draw_faces(images, p, names, classes, sheet)
    print(f"probabilities in %; written: {table} {sheet}")
    return {"rows": rows, "table": str(table), "sheet": str(sheet)}


def read_pictures(name: str, crop: Box | None) -> tuple[list[Path], np.ndarray]:
    """The readable pictures that `name` means: their paths, and uint8 (N, 48, 48).

    The others of a folder are named on stderr. Raises UserError when none is readable.
    """
    found = find_pictures(name)
    if found == [Path(name)]:
        return found, load_picture(found[0], crop)[None]
    images = {}
    for path in found:
        try:
            images[path] = load_picture(path, crop)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not images:
        raise UserError(f"{name}: none of {len(found)} pictures can be read, expected one")
    return list(images), np.stack(list(images.values()))


@torch.inference_mode()
def probabilities(predict: Predict, images: np.ndarray, device: torch.device) -> np.ndarray:
    """The softmax of the logits that `predict` gives of uint8 (N, 48, 48): float64 (N, K)."""
    batches = torch.from_numpy(images).unsqueeze(1).split(BATCH)
    logits = torch.cat([predict(to_float(batch.to(device))).cpu() for batch in batches])
    return logits.double().softmax(dim=1).numpy()


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
