"""What a search leaves for the reader: the table of its alphas and scores, and its pictures."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from common.arguments import RETRAINING
from common.plots import draw_alphas, draw_cell, draw_curves, draw_decisions
from common.report import drawing, format_table, headline, write_summary
from engine import image_limit
from genotypes import GENOTYPE_FILE, PRIMITIVES, Genotype, format_genotype, save_genotype
from model_search import CELLS, EDGE_NAMES, EDGES
from runtime.logs import log
from runtime.run import Run
from sgas import EdgeScores


def describe_edges(
    epoch: int, cell: str, alphas: torch.Tensor, scores: EdgeScores, states: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each of the 14 edges of `cell` after `epoch`: state, criteria, alphas (14, 11)."""
    return [
        {
            "epoch": epoch,
            "cell": cell,
            "edge": edge,
            "node": node + 2,
            "source": source,
            "state": states[edge],
            "importance": scores.importance[edge].item(),
            "certainty": scores.certainty[edge].item(),
            "stability": scores.stability[edge].item(),
            "score": scores.score[edge].item(),
            **dict(zip(PRIMITIVES, alphas[edge].tolist(), strict=True)),
        }
        for edge, (node, source) in enumerate(EDGES)
    ]


def describe_decision(decision: Mapping[str, Any]) -> str:
    """A decision for the log: `normal 3 -> 5 sep_conv_3x3, pruned 0 -> 5`."""
    pruned = ", ".join(EDGE_NAMES[edge] for edge in decision["pruned"]) or "none"
    edge = EDGE_NAMES[decision["edge"]]
    return f"{decision['cell']} {edge} {decision['primitive']}, pruned {pruned}"


def tabulate_cells(genotype: Genotype, decisions: Sequence[dict[str, Any]]) -> str:
    """A table for the log: the edges of both cells, and after which epoch each was decided."""
    epochs = {(d["cell"], EDGES[d["edge"]]): d["epoch"] for d in decisions}
    rows = []
    for cell, edges in zip(CELLS, (genotype.normal, genotype.reduce), strict=True):
        for place, (primitive, source) in enumerate(edges):
            decided = epochs.get((cell, (place // 2, source)), "open")
            rows.append([cell, f"{source} -> {place // 2 + 2}", primitive, decided])
    return format_table(["cell", "edge", "primitive", "decided after epoch"], rows)


def report_search(
    genotype: Genotype,
    progress: Any,
    validation_images: int,
    parameters: int,
    args: argparse.Namespace,
    run: Run,
) -> dict[str, Any]:
    """Write the genotype, the pictures and summary.json of a search; returns the summary.

    `progress` is a `search.SearchProgress`.
    """
    folder, history = run.folder, progress.history
    save_genotype(genotype, folder / GENOTYPE_FILE)
    last = history[-1]
    images = min(validation_images, image_limit(args, last["batch_size"]) or validation_images)
    valid = headline(last["valid_accuracy"], images, validation_images)
    with drawing():
        draw_cell(genotype.normal, genotype.normal_concat, folder / "normal.png", "normal cell")
        draw_cell(
            genotype.reduce, genotype.reduce_concat, folder / "reduction.png", "reduction cell"
        )
        last_rows = pd.DataFrame(progress.rows[-2 * len(EDGES) :])
        for cell in CELLS:
            edges = last_rows[last_rows["cell"] == cell]
            strengths = torch.tensor(edges[list(PRIMITIVES)].to_numpy()).softmax(dim=1).numpy()
            title = f"softmax(alpha) of the {cell} cell after epoch {len(history)}"
            draw_alphas(strengths, folder / f"alphas_{cell}.png", title, edges["state"].tolist())
        draw_decisions(progress.decisions, len(history), folder / "decisions.png")
        draw_curves(history, folder / "curves.png")
    summary = write_summary(
        folder,
        args,
        protocol=args.protocol,
        checkpoints=[],
        genotype=format_genotype(genotype),
        parameters=parameters,
        epochs=len(history),
        seconds=sum(record["seconds"] for record in history),
        figures={"valid": valid},
        details={"open_edges": last["open_edges"], "last_epoch": last},
    )
    log.info("\n%s\n\n%s", tabulate_cells(genotype, progress.decisions), summary["genotype"])
    if last["open_edges"]:
        log.info(
            "%d edges were never decided: the most important were taken; more --epochs decide them",
            last["open_edges"],
        )
    words = ["python", "train_FER2013.py", "--arch", str(folder), *RETRAINING[args.recipe].split()]
    log.info("genotype and pictures in %s; next: %s", folder, shlex.join(words))
    return summary
