"""Export a trained network for other programs: ONNX, or PyTorch's own format.

    python -m tools.export NAME --out model.onnx

Writes the network of a checkpoint, named as for test_JAFFE.py, with its batch norms merged into the
convolutions. `--out` ends in .onnx, or in .pt2 for torch.export. Input `faces`: float32 (N, 1, 48,
48), gray, values in [0, 1] (a pixel divided by 255), any N. Output `logits`: float32 (N, K); their
softmax over the last axis are the probabilities. The classes in their order, the side, the sha256
of the checkpoint and these sentences are in the metadata. The file is written only when its logits
agree with those of the checkpoint. Needs `requirements-export.txt` and PyTorch 2.6.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import arguments
from common.cli import run_script
from common.manifest import digest
from common.weights import Trained, find_weights, load_trained, network_flags
from data.types import SIDE
from model import Network, fuse_batch_norms
from runtime.errors import UserError
from runtime.files import atomic_write

FORMATS = (".onnx", ".pt2")
TOLERANCE = 1e-5  # of the logits, by the largest of them where it is above 1
CHECKED = 100  # random images


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m tools.export")
    # fmt: off
    add = parser.add_argument
    add("checkpoint", metavar="NAME", help="the trained network")
    add("--out", type=Path, required=True, metavar="FILE", help="the file to write: .onnx or .pt2")
    add("--model_path", default="saved_models", metavar="FOLDER", help="where run folders lie")
    # fmt: on
    arguments.add_network_arguments(parser)
    arguments.add_layers_argument(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Write the file; return its path and the largest difference of the logits."""
    if args.out.suffix not in FORMATS:
        raise UserError(f"--out {args.out}: expected a name that ends in {' or '.join(FORMATS)}")
    path = find_weights("NAME", args.checkpoint, args.model_path)
    trained = load_trained(path, layers=args.layers, **network_flags(args))
    images = torch.rand(CHECKED, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trained.model.eval()(images)[0]
        program = torch.export.export(
            _Logits(trained.model).eval(),
            (images[:2],),
            dynamic_shapes={"faces": {0: torch.export.Dim("N")}},
        )
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"network{args.out.suffix}"
        write, run = (write_onnx, run_onnx) if args.out.suffix == ".onnx" else (write_pt2, run_pt2)
        write(program, metadata(trained), written)
        difference = float((run(written, images) - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise UserError(f"{args.out}: not written, its logits differ by {difference:.1e}")
        content = written.read_bytes()
    atomic_write(args.out, lambda file: file.write(content))
    print(f"written: {args.out} ({len(content)} bytes); the logits of {CHECKED} random images "
          f"differ by {difference:.1e} at most")  # fmt: skip
    return {"path": str(args.out), "difference": difference}


class _Logits(nn.Module):
    """A network with fused batch norms, from faces to logits alone."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = fuse_batch_norms(network).requires_grad_(False)

    def forward(self, faces: Tensor) -> Tensor:
        return self.network(faces)[0]


def metadata(trained: Trained) -> dict[str, str]:
    """What a program must know to use the network, as text by name."""
    return {
        "classes": json.dumps(trained.classes),
        "side": str(SIDE),
        "input": "faces: float32 (N, 1, 48, 48), gray in [0, 1], a face that fills the image",
        "output": "logits: float32 (N, K); their softmax are the probabilities of the classes",
        "checkpoint": trained.path.name,
        "checkpoint_sha256": digest(trained.path),
    }


def write_onnx(program: torch.export.ExportedProgram, info: dict[str, str], path: Path) -> None:
    """Write a program as ONNX, with its metadata; UserError where packages are missing."""
    try:
        import onnx

        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=["faces"],
            output_names=["logits"],
            verbose=False,
        )
    except ImportError as error:
        raise UserError(f"{error}: pip install -r requirements-export.txt") from error
    assert exported is not None  # as no file was named
    model = exported.model_proto
    # Names of source files, which are of no use to a program, are a fifth of the file.
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    onnx.helper.set_model_props(model, info)
    path.write_bytes(model.SerializeToString())


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """The logits of an ONNX file by onnxruntime, as a program without PyTorch runs it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"faces": images.numpy()})[0])


def write_pt2(program: torch.export.ExportedProgram, info: dict[str, str], path: Path) -> None:
    """Write a program for torch.export.load, with its metadata as extra files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that share memory
        torch.export.save(program, path, extra_files=dict(info))


def run_pt2(path: Path, images: Tensor) -> Tensor:
    """The logits of a file of torch.export."""
    return torch.export.load(path).module()(images)


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
