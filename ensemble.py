"""Average the logits of several trained networks on FER2013.

    python ensemble.py --model_names model1,model2 --layers 12,12,20  --batch_size 64

Writes a run folder below --model_path: `log.txt`, for the ensemble on PublicTest and PrivateTest a
report and a confusion matrix, and `summary.json` with each member's own figures, how often members
agree and what the ensemble gains on each.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

from runtime.startup import prepare

prepare()  # before torch is imported

import torch

from common import arguments
from common.cli import run_script
from common.manifest import digest
from common.report import (
    format_table,
    report_split,
    rows_on_images,
    split_headline,
    write_summary,
)
from common.start import start_run
from common.training import EVALUATED, evaluation_splits
from common.weights import DEFAULT, find_weights, load_trained, network_flags, require_classes
from data.sets import load_set
from engine import Scores, evaluate_splits
from runtime.errors import UserError
from runtime.logs import log


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("the members").add_argument
    add("--model_names", type=arguments.names, default=DEFAULT, metavar="A,B,...",
        help="checkpoints or run folders, as given, with .pt added or inside --model_path, or "
        "names of weights in checkpoints/")
    add("--layers", type=depths_list, default=[], metavar="L,M,...",
        help="cells of each member; checked, as every checkpoint says it (default: none)")
    # fmt: on
    arguments.add_network_arguments(parser)
    arguments.add_data_arguments(parser, batch_size=64, seed=0)
    arguments.add_folder_arguments(parser)
    arguments.add_tta_argument(parser)
    parser.set_defaults(script="ensemble.py")
    return parser


def depths_list(text: str) -> list[int]:
    """argparse type: numbers of cells separated by commas."""
    return [arguments.cells(each) for each in arguments.names(text)]


def mean_scores(members: list[Scores]) -> Scores:
    """The mean of the members' logits on the same images."""
    logits = torch.stack([member.logits.double() for member in members]).mean(dim=0)
    return replace(members[0], logits=logits.float())


def agreement(members: list[Scores]) -> list[list[float]]:
    """How often members i and j predict the same class, in percent: a symmetric table."""
    votes = [member.predictions for member in members]
    return [[100.0 * (a == b).double().mean().item() for b in votes] for a in votes]


def gain(ensemble: Scores, member: Scores) -> dict[str, float]:
    """Points by which the ensemble is more accurate than a member, paired by image.

    `interval95` is the half width of its 95 % interval: 1.96 standard errors of the mean difference
    of right and wrong answers, without the variation by selection of members and between seeds.
    """
    apart = 100.0 * (ensemble.correct.double() - member.correct.double())
    deviation = apart.std(correction=0).item()
    return {"points": apart.mean().item(), "interval95": 1.96 * deviation / len(apart) ** 0.5}


def member_depths(args: argparse.Namespace) -> list[int | None]:
    """The number of cells that --layers gives each member, None for none given."""
    names, layers = args.model_names, args.layers
    if len(layers) > len(names):
        unused = ",".join(map(str, layers[len(names) :]))
        log.warning(
            "--layers: %d depths for %d models; not used: %s", len(layers), len(names), unused
        )
    elif 0 < len(layers) < len(names):
        raise UserError(
            f"--layers: {len(layers)} depths found, expected one for each of the {len(names)} "
            "models, or none"
        )
    return [*layers[: len(names)], *[None] * (len(names) - len(layers))]


def main(args: argparse.Namespace) -> dict[str, Any]:
    run = start_run(args, "ensemble")
    started = time.monotonic()
    depths = member_depths(args)
    paths = [find_weights("--model_names", name, args.model_path) for name in args.model_names]
    # All of them before the data are read, so that errors are reported at once.
    trained = [
        load_trained(path, layers=depth, **network_flags(args))
        for path, depth in zip(paths, depths, strict=True)
    ]
    data = load_set(args.data).to(run.device)
    splits = evaluation_splits(data.splits, args)
    members: dict[str, list[Scores]] = {name: [] for name in EVALUATED}
    for member in trained:
        require_classes(member.path, member.classes, data.classes)
    with run.interruptible(resumable=False):
        for member in trained:
            model = member.model.to(run.device)
            scored = evaluate_splits(model, splits, args.batch_size, run, args.tta)
            for name, scores in scored.items():
                members[name].append(scores)
            model.cpu()
    parameters = [member.model.num_parameters for member in trained]
    ensemble = {name: mean_scores(scores) for name, scores in members.items()}
    agreements = {name: agreement(scores) for name, scores in members.items()}
    gains = {name: [gain(ensemble[name], each) for each in members[name]] for name in EVALUATED}
    summary = write_summary(
        run.folder,
        args,
        protocol=None,
        checkpoints=[str(path) for path in paths],
        genotype=None,
        parameters=sum(parameters),
        epochs=0,
        seconds=time.monotonic() - started,
        figures={
            name: report_split(name, each, data.classes, run.folder)
            for name, each in ensemble.items()
        },
        details={
            "members": [
                {
                    "checkpoint": str(path),
                    "sha256": digest(path),
                    "parameters": parameters[k],
                    "figures": {name: split_headline(members[name][k]) for name in EVALUATED},
                }
                for k, path in enumerate(paths)
            ],
            "tta": args.tta,
            "agreement": agreements,
            "gain": gains,
        },
    )

    rows: list[list[Any]] = [
        [
            f"{k + 1} {path}",
            f"{parameters[k]:,}",
            *(members[name][k].accuracy for name in EVALUATED),
            *agreements["PrivateTest"][k],
        ]
        for k, path in enumerate(paths)
    ]
    own = [ensemble[name].accuracy for name in EVALUATED]
    rows.append([f"ensemble of {len(paths)}", f"{sum(parameters):,}", *own, *[""] * len(paths)])
    for name, *figures in rows_on_images("the ensemble", ensemble):
        rows.append([name, "", *figures, *[""] * len(paths)])
    if len(paths) > 1:
        for k in range(len(paths)):
            above = [gains[name][k] for name in EVALUATED]
            figures = [f"{each['points']:+.2f} ± {each['interval95']:.2f}" for each in above]
            rows.append([f"points above member {k + 1}, ± 95 %", "", *figures, *[""] * len(paths)])
    columns = ["top-1 accuracy in %", "parameters", *EVALUATED]
    columns += [f"like {k + 1}" for k in range(len(paths))]
    log.info(
        "\n%s\n\nlike K: predictions on PrivateTest equal to member K's, in %%; "
        "reports and pictures in %s",
        format_table(columns, rows),
        run.folder,
    )
    return summary


if __name__ == "__main__":
    sys.exit(run_script(main, build_parser()))
