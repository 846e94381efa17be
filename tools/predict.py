"""Name the expressions of the faces in pictures or in a video, by the networks of checkpoints.

    python -m tools.predict PICTURE_OR_FOLDER... [--checkpoint NAME[,NAME...]] [--detect]
    python -m tools.predict --video FILE_OR_CAMERA [--checkpoint NAME[,NAME...]]

Does what the command `auto-fernet` does without PyTorch, by exported networks: see
`auto_fernet/command.py`. The logits of several checkpoints are averaged as by ensemble.py.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch

from auto_fernet.command import add_picture_arguments, predict
from auto_fernet.pictures import PictureError
from common import arguments
from common.cli import run_script
from common.start import resolve_device
from common.weights import DEFAULT, load_members, network_flags
from data.augment import to_float
from recipe.views import tta_predict
from runtime.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m tools.predict")
    # fmt: off
    add = parser.add_argument
    add("--checkpoint", type=arguments.names, default=DEFAULT, metavar="X,Y,...",
        help="trained networks, named as for test_JAFFE.py; the logits of several are averaged")
    add("--model_path", default="saved_models", metavar="FOLDER", help="where run folders lie")
    # fmt: on
    add_picture_arguments(parser)
    arguments.add_network_arguments(parser)
    arguments.add_layers_argument(parser)
    arguments.add_tta_argument(parser)
    arguments.add_device_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Predict, and write what `auto-fernet` writes."""
    device = resolve_device(args)
    members, classes = load_members(
        "--checkpoint", args.checkpoint, device, layers=args.layers, **network_flags(args)
    )
    logits = tta_predict(members, args.tta)

    @torch.inference_mode()
    def recognise(faces: np.ndarray) -> np.ndarray:
        images = to_float(torch.from_numpy(faces).unsqueeze(1).to(device))
        return logits(images).double().softmax(dim=1).cpu().numpy()

    try:
        predict(args, recognise, classes)
    except PictureError as error:
        raise UserError(str(error)) from error
    return {}


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
