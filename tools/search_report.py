"""What a search leaves for the reader: the table of its alphas and scores, and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from architect import EdgeScores
from genotypes import PRIMITIVES, Genotype
from model_search import CELLS, EDGES
from tools.plots import draw_alphas, draw_cell, draw_curves, draw_decisions
from tools.report import format_table


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


def tabulate_cells(genotype: Genotype, decisions: Sequence[dict[str, Any]]) -> str:
    """A table for the log: the edges of both cells, and after which epoch each was decided."""
    epochs = {(d["cell"], EDGES[d["edge"]]): d["epoch"] for d in decisions}
    rows = []
    for cell, edges in zip(CELLS, (genotype.normal, genotype.reduce), strict=True):
        for place, (primitive, source) in enumerate(edges):
            decided = epochs.get((cell, (place // 2, source)), "open")
            rows.append([cell, f"{source} -> {place // 2 + 2}", primitive, decided])
    return format_table(["cell", "edge", "primitive", "decided after epoch"], rows)


def draw_search(
    rows: Sequence[dict[str, Any]],
    decisions: Sequence[dict[str, Any]],
    history: Sequence[dict[str, Any]],
    genotype: Genotype,
    folder: Path,
) -> None:
    """Draw both cells, their alphas after the last epoch, the decisions and the curves."""
    draw_cell(genotype.normal, genotype.normal_concat, folder / "normal.png", "normal cell")
    draw_cell(genotype.reduce, genotype.reduce_concat, folder / "reduction.png", "reduction cell")
    last = pd.DataFrame(rows[-2 * len(EDGES) :])
    for cell in CELLS:
        edges = last[last["cell"] == cell]
        strengths = torch.tensor(edges[list(PRIMITIVES)].to_numpy()).softmax(dim=1).numpy()
        title = f"softmax(alpha) of the {cell} cell after epoch {len(history)}"
        draw_alphas(strengths, folder / f"alphas_{cell}.png", title, edges["state"].tolist())
    draw_decisions(decisions, len(history), folder / "decisions.png")
    draw_curves(history, folder / "curves.png")
