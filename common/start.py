"""How a run starts: the device, seeds, folder and log, and what is recorded of it."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from common.manifest import digest
from common.weights import find_weights
from data.types import DataSet, Faces
from runtime.board import Board
from runtime.errors import UserError
from runtime.folders import create_run_folder
from runtime.logs import describe_machine, log, open_log
from runtime.processes import describe_processes, is_distributed, rank
from runtime.run import Run, autocast
from utils import seed_everything


def start_run(args: argparse.Namespace, label: str) -> Run:
    """The run of a script: device, seeds, run folder and log; at --resume those of before.

    `label` begins the name of a new folder without --save.
    """
    resumed = vars(args).pop("resumed", None)  # read with the flags; not one of them
    if resumed is None:
        open_log()
    device = resolve_device(args)
    seed_everything(args.seed)
    if resumed is None:
        folder = create_run_folder(args.model_path, args.save, label)
        open_log(folder)
    else:
        folder = Path(args.resume)
    board = Board(folder / "tensorboard") if getattr(args, "tensorboard", False) else None
    if started := getattr(args, "started", None):
        log.info("%s, commit %s", started["command"], started["commit"])
    precision = autocast(device, args.amp)
    kind = "bf16" if precision._enabled else "fp32"
    log.info("%s; forward passes in %s (--amp %s)", describe_machine(device), kind, args.amp)
    log.info("run folder %s", folder)
    if longer_from := getattr(args, "longer_from", None):
        line = "--epochs %d instead of %d: goes on with the schedules of %d epochs"
        log.info(line, args.epochs, longer_from, args.epochs)
    first = board if rank() == 0 else None
    return Run(folder, device, precision, resumed=resumed, board=first)


def check_inputs(
    run: Run, args: argparse.Namespace, data: DataSet | Faces, start: Path | None = None
) -> None:
    """Keep with the run the digests of its data, teachers and the weights that it starts from.

    Raises UserError where a resumed run began with others.
    """
    inputs = {"data": data.digest()}
    if teachers := getattr(args, "teacher", []):
        paths = (find_weights("--teacher", name, args.model_path) for name in teachers)
        inputs["teacher"] = " ".join(map(digest, paths))
    if start is not None:
        inputs["checkpoint"] = digest(start)
    began = (run.resumed or {}).get("inputs", {})  # runs of older versions recorded none
    for flag, value in inputs.items():
        if began.get(flag, value) != value:
            given = ",".join(teachers) if flag == "teacher" else getattr(args, flag)
            raise UserError(
                f"--{flag} {given}: no longer what {run.folder} began with, expected the same"
            )
    run.inputs = inputs | began


def resolve_device(args: argparse.Namespace) -> torch.device:
    """The device that --device and --gpu ask for; UserError when it does not exist.

    Under torchrun "auto" and "cuda" are one GPU for each process of the machine.
    """
    name, flag = args.device, f"--device {args.device}"
    mps = torch.backends.mps.is_available()
    if args.gpu is not None:
        if name not in ("auto", "cuda", f"cuda:{args.gpu}"):
            raise UserError(f"--gpu {args.gpu}: contradicts {flag}; give one of them")
        name, flag = f"cuda:{args.gpu}", f"--gpu {args.gpu}"
    if name == "auto":
        alone = "mps" if mps and not is_distributed() else "cpu"
        name = "cuda" if torch.cuda.is_available() else alone
    if name == "cuda" and is_distributed():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    elif is_distributed() and name != "cpu" and int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        raise UserError(
            f"{flag}: one device for {os.environ['LOCAL_WORLD_SIZE']} processes; expected auto, "
            "which gives each a GPU of its own, or cpu"
        )
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(mps)}
    devices = [f"{kind}:{number}" for kind, count in counts.items() for number in range(count)]
    if name not in devices and f"{name}:0" not in devices:
        raise UserError(
            f"{flag}: no such device here ({counts['cuda']} CUDA devices found); expected auto, "
            "cpu, cuda, cuda:N or mps"
        )
    device = torch.device(name)
    if device.type == "cuda" and is_distributed():
        torch.cuda.set_device(device)
    return device


def describe_start(script: str, argv: Sequence[str]) -> dict[str, str | None]:
    """The command, the commit of the code and the machine of a run, on which weights depend."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "command": shlex.join(["python", script, *argv]),
        "commit": describe_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores{gpu}, "
        f"python {platform.python_version()}, torch {torch.__version__}{describe_processes()}",
    }


def describe_commit() -> str | None:
    """The commit of this code, with -dirty where files differ from it; None outside git."""
    words = "git --no-optional-locks describe --always --dirty --abbrev=40 --exclude=*".split()
    try:
        return subprocess.check_output(
            words, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
