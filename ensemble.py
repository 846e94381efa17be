"""Average the logits of several trained networks on FER2013.

    python ensemble.py --model_names model1,model2 --layers 12,12,20  --batch_size 64

Writes a run folder below --model_path: `log.txt`, for the ensemble on PublicTest and PrivateTest a
report and a confusion matrix, and `summary.json` with each member's own figures and how often
members agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

from common import arguments, cli
from common.report import format_table, headline, report_split, write_summary
from common.weights import find_weights, load_trained, network_parser
from data.augment import spread
from data.fer2013 import CLASSES, load_fer2013
from engine import Scores, autocast, evaluate_splits
from utils import UserError, create_run_folder, describe_machine, open_log, stop_on_signals

SPLITS = ("PublicTest", "PrivateTest")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        parents=[
            arguments.common_parser(batch_size=64, batch_why="the published value", seed=0),
            arguments.folder_parser(label="ensemble"),
            network_parser(layers=False),
            arguments.tta_parser(),
        ],
    )
    # fmt: off
    add = parser.add_argument_group("the members").add_argument
    add("--model_names", type=arguments.names, required=True, metavar="A,B,...",
        help="checkpoints or run folders, as given, with .pt added, or inside --model_path "
        "(no default: the members are what the ensemble is)")
    add("--layers", type=depths, default=[], metavar="L,M,...",
        help="cells of each member (default: what its checkpoint says, 12 for a bare state dict)")
    # fmt: on
    return parser


def depths(text: str) -> list[int]:
    """argparse type: positive integers separated by commas."""
    return [arguments.positive_int(each) for each in arguments.names(text)]


def average(members: list[Scores]) -> Scores:
    """The mean of the members' logits; they have seen the same images."""
    logits = torch.stack([member.logits.double() for member in members]).mean(dim=0)
    return Scores(logits.float(), members[0].labels)


def agreement(members: list[Scores]) -> list[list[float]]:
    """How often members i and j name the same class, in percent: a symmetric table."""
    votes = [member.predictions for member in members]
    return [[100.0 * (a == b).double().mean().item() for b in votes] for a in votes]


def main(args: argparse.Namespace) -> dict[str, Any]:
    log = open_log()
    device = cli.resolve_device(args.device, args.gpu)
    precision = autocast(device, args.amp)
    if len(args.layers) > len(args.model_names):
        log.warning(
            "--layers: %d depths for %d models; not used: %s",
            len(args.layers), len(args.model_names),
            ",".join(map(str, args.layers[len(args.model_names) :])),
        )  # fmt: skip
    elif 0 < len(args.layers) < len(args.model_names):
        raise UserError(
            f"--layers: {len(args.layers)} depths found, expected one for each of the "
            f"{len(args.model_names)} models, or none"
        )
    # All of them before the first is evaluated: a missing one is told at once.
    paths = [find_weights("--model_names", each, args.model_path) for each in args.model_names]
    flags = {"init_channels": args.init_channels, "arch": args.arch}
    wanted = [*args.layers, *[None] * len(paths)][: len(paths)]
    for path, layers in zip(paths, wanted, strict=True):
        load_trained(path, layers=layers, **flags)
    splits = load_fer2013(args.data, report=log.info)
    limit = args.limit_batches and args.limit_batches * args.batch_size
    parts = {
        name: spread(splits[name], limit).map(lambda tensor: tensor.to(device)) for name in SPLITS
    }
    run = create_run_folder(args.model_path, args.save, "ensemble")
    log = open_log(run)
    log.info("%s", describe_machine(device))

    members: dict[str, list[Scores]] = {name: [] for name in SPLITS}
    parameters, started = [], time.monotonic()
    with stop_on_signals(resumable=False) as stop:
        for path, layers in zip(paths, wanted, strict=True):
            # One network at a time, so that memory does not grow with their number.
            model = load_trained(path, layers=layers, **flags).model.to(device)
            parameters.append(model.size)
            scored = evaluate_splits(
                model,
                parts,
                batch_size=args.batch_size,
                precision=precision,
                stop=stop,
                tta=args.tta,
            )
            for name, scores in scored.items():
                members[name].append(scores)
    ensemble = {name: average(scores) for name, scores in members.items()}
    agreements = {name: agreement(scores) for name, scores in members.items()}
    summary = write_summary(
        run,
        script="ensemble.py",
        protocol=None,
        seed=args.seed,
        checkpoints=[str(path) for path in paths],
        genotype=None,
        parameters=sum(parameters),
        epochs=0,
        seconds=time.monotonic() - started,
        figures={name: report_split(name, each, CLASSES, run) for name, each in ensemble.items()},
        members=[
            {
                "checkpoint": str(path),
                "parameters": parameters[k],
                "figures": {
                    name: headline(members[name][k].accuracy, len(members[name][k].labels))
                    for name in SPLITS
                },
            }
            for k, path in enumerate(paths)
        ],
        tta=args.tta,
        agreement=agreements,
    )
    rows = [
        [f"{k + 1} {path}", f"{parameters[k]:,}", *(members[name][k].accuracy for name in SPLITS),
         *agreements["PrivateTest"][k]]
        for k, path in enumerate(paths)
    ]  # fmt: skip
    rows.append(
        [f"ensemble of {len(paths)}", f"{sum(parameters):,}",
         *(ensemble[name].accuracy for name in SPLITS), *[""] * len(paths)]
    )  # fmt: skip
    columns = ["top-1 accuracy in %", "parameters", *SPLITS]
    columns += [f"like {k + 1}" for k in range(len(paths))]
    log.info(
        "\n%s\n\nlike K: answers on PrivateTest that are also member K's, in %%; "
        "reports and pictures in %s",
        format_table(columns, rows),
        run,
    )
    return summary


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser()))
