"""Name the expression on pictures of one's own.

python -m tools.predict PICTURE_OR_FOLDER --checkpoint NAME[,NAME...]

A picture is a face, framed about as FER2013 frames faces: it fills the picture. Prints a line a
picture, the most likely expression and the probabilities of all seven, and writes
`predictions.csv` and `faces.png`, a contact sheet, below --out. Several checkpoints are averaged as
ensemble.py averages them. What is no picture is named and left out of a folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import arguments, cli
from common.weights import load_members
from data.augment import to_float
from data.faces import one_line
from data.fer2013 import CLASSES
from data.jaffe import Box, check_box
from data.pictures import find_pictures, load_picture
from data.views import over_views
from tools.plots_faces import draw_faces
from utils import UserError, write_rows

BATCH = 64


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.predict",
        description=(__doc__ or "").split("\n")[0],
        parents=[arguments.tta_parser()],
    )
    # fmt: off
    add = parser.add_argument
    add("pictures", metavar="PICTURE_OR_FOLDER", help="a picture, or a folder of some")
    add("--checkpoint", type=arguments.names, required=True, metavar="X,Y,...",
        help="trained networks, named as test_JAFFE.py's; of several the logits are averaged (no "
        "default, as the answers hang on it)")
    add("--model_path", default="saved_models", metavar="FOLDER",
        help="where run folders lie (default: saved_models, as for training)")
    add("--crop", type=arguments.box, metavar="LEFT,TOP,RIGHT,BOTTOM|none",
        help="part of the largest centred square that is taken, in 256ths of it (default: none, "
        "all of it)")
    add("--out", default="predictions", metavar="FOLDER",
        help="where the table and the contact sheet go (default: predictions, which git ignores)")
    # fmt: on
    arguments.add_device(parser.add_argument_group("the device"))
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Predict; returns the rows of the table and the paths written."""
    check_box(args.crop)
    device = cli.resolve_device(args.device, args.gpu)
    predict = load_members("--checkpoint", args.checkpoint, args.model_path, device)
    paths, images = read_pictures(args.pictures, args.crop)
    out = cli.make_folder("--out", args.out)
    p = probabilities(over_views(predict, args.tta), images, device)
    names = [one_line(Path(path.name)) for path in paths]
    rows = [
        {"picture": name, "expression": CLASSES[np.argmax(row)]}
        | dict(zip(CLASSES, row, strict=True))
        for name, row in zip(names, p.tolist(), strict=True)
    ]
    widest = max(map(len, names))
    for row in rows:
        shares = "  ".join(f"{name} {100 * row[name]:.1f}" for name in CLASSES)
        print(f"{row['picture']:<{widest}}  {row['expression']:<8}  {shares}")
    table, sheet = out / "predictions.csv", out / "faces.png"
    write_rows(rows, table)
    draw_faces(images, p, names, CLASSES, sheet)
    print(f"probabilities in %; written: {table} {sheet}")
    return {"rows": rows, "table": str(table), "sheet": str(sheet)}


def read_pictures(name: str, crop: Box | None) -> tuple[list[Path], np.ndarray]:
    """The readable pictures that `name` means, and they as uint8 (N, 48, 48).

    In a folder the others are named on the terminal. Raises UserError where none is readable.
    """
    found = find_pictures(name)
    if found == [Path(name)]:
        return found, load_picture(found[0], crop)[None]
    paths, images = [], []
    for path in found:
        try:
            images.append(load_picture(path, crop))
            paths.append(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not images:
        raise UserError(
            f"{one_line(Path(name))}: none of {len(found)} pictures can be read, expected one"
        )
    return paths, np.stack(images)


@torch.inference_mode()
def probabilities(
    predict: Callable[[Tensor], Tensor], images: np.ndarray, device: torch.device
) -> np.ndarray:
    """What `predict`, from images to logits, makes of uint8 (N, 48, 48): float64 (N, 7)."""
    batches = torch.from_numpy(images).unsqueeze(1).split(BATCH)
    logits = torch.cat([predict(to_float(batch.to(device))).cpu() for batch in batches])
    return logits.double().softmax(dim=1).numpy()


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
