"""What a script leaves for the reader: tables, per-class reports, confusion matrices, pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from common.calibration import calibration_bins, expected_calibration_error
from common.page import PAGE, SUMMARY, describe_time, write_page
from common.plots import draw_confusion, draw_reliability
from engine import Scores
from runtime.errors import describe_error
from runtime.files import write_text
from runtime.logs import log


def interval(accuracy: float, count: int) -> float:
    """Half width, in points, of the 95 % normal interval of an accuracy in percent."""
    p = accuracy / 100.0
    return 196.0 * (p * (1.0 - p) / count) ** 0.5


def headline(accuracy: float, count: int, total: int | None = None) -> dict[str, Any]:
    """What figures begin with: top-1 in percent, of how many images, "of" `total` if of a part."""
    head = {"accuracy": accuracy, "interval95": interval(accuracy, count), "images": count}
    return head if total is None or total <= count else {**head, "of": total}


def count_images(head: Mapping[str, Any]) -> str:
    """The images of a `headline`: "3,589", or of a shortened run "640 of 3,589"."""
    return f"{head['images']:,}" + (f" of {head['of']:,}" if "of" in head else "")


def split_headline(scores: Scores) -> dict[str, Any]:
    """The `headline` of a split; where Training holds copies of it, also that of the others."""
    head = headline(scores.accuracy, len(scores.labels), scores.total)
    own = scores.without_copies()
    if own is None:
        return head
    return {**head, "without_copies": headline(own.accuracy, len(own.labels))}


def rows_on_images(name: str, scores: Mapping[str, Scores]) -> list[list[Any]]:
    """Rows of a table of splits: without copies if there are any; the images of a shortened run."""
    own = [each.without_copies() for each in scores.values()]
    counts = [count_images(split_headline(each)) for each in scores.values()]
    without = ["" if each is None else each.accuracy for each in own]
    rows: list[list[Any]] = [[f"{name}, without copies of Training", *without]] if any(own) else []
    return rows + ([["images", *counts]] if any(" of " in count for count in counts) else [])


def report_split(name: str, scores: Scores, classes: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write `name`_report.txt, `name`_confusion.csv and .png, `name`_reliability.png into `folder`.

    Returns accuracy and its 95 % half width in percent, the number of images, the loss, the
    expected calibration error in points, and precision, recall and F1 (fractions) of each class.
    """
    # Only now, as it takes a second to import, and a training has its first step before.
    from sklearn.metrics import classification_report, confusion_matrix

    predictions, labels = scores.predictions.numpy(), scores.labels.numpy()
    which = list(range(len(classes)))
    options = {"labels": which, "zero_division": 0}
    # By number, as scikit-learn adds entries "accuracy" and others, which a class may be called.
    figures = classification_report(labels, predictions, output_dict=True, **options)
    matrix = confusion_matrix(labels, predictions, labels=which)
    table = pd.DataFrame(
        matrix, index=pd.Index(classes, name="true\\predicted"), columns=list(classes)
    )
    options |= {"target_names": list(classes)}
    text = classification_report(labels, predictions, digits=4, **options)
    head, without = split_headline(scores), ""
    bins = calibration_bins(scores)
    error = expected_calibration_error(bins)
    if own := head.get("without_copies"):
        without = f", {own['accuracy']:.2f} % of the {own['images']} that are not in Training"
    write_text(
        folder / f"{name}_report.txt",
        f"{name}: top-1 {scores.accuracy:.2f} % of {count_images(head)} images{without}\n"
        f"expected calibration error {error:.2f} % ({len(bins)} bins)\n\n{text}\n"
        f"confusion matrix (rows true, columns predicted)\n{table.to_string()}\n",
    )
    write_text(folder / f"{name}_confusion.csv", table.to_csv())
    with drawing():
        draw_confusion(matrix, classes, folder / f"{name}_confusion.png", name)
        draw_reliability(bins, error, folder / f"{name}_reliability.png", name)
    return {
        **head,
        "loss": scores.loss,
        "calibration_error": error,
        "classes": {
            each: {key: figures[str(k)][key] for key in ("precision", "recall", "f1-score")}
            for k, each in enumerate(classes)
        },
    }


@contextmanager
def drawing() -> Iterator[None]:
    """Log why the picture or page of the block cannot be made: nothing else depends on it."""
    try:
        yield
    except Exception as error:
        log.warning("a picture or page could not be written (%s)", describe_error(error))


# Of `args`, what is no flag of the command line, or not of the run but of one start of it.
_NO_FLAGS = {"script", "started", "save", "resume", "resumed", "longer_from", "time_limit"}


def describe_run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What summary.json begins with: script, folder, seed, command, commit, machine and flags."""
    return {
        "script": args.script,
        "run": str(folder),
        "seed": args.seed,
        **(getattr(args, "started", None) or {}),
        "flags": {name: value for name, value in vars(args).items() if name not in _NO_FLAGS},
    }


def write_summary(
    folder: Path,
    args: argparse.Namespace,
    *,
    protocol: str | None,
    checkpoints: Sequence[str],
    genotype: str | None,
    parameters: int,
    epochs: int,
    seconds: float,
    figures: Mapping[str, Mapping[str, Any]],
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `folder`/summary.json and report.html; return the summary, whose keys are the same
    for every script. Pictures come before it.

    `protocol` is None where no figure depends on it, `genotype` where there are several;
    `checkpoints` are the weights that were read, `epochs` those trained, in `seconds`. `figures`
    by split or set begin with `headline`.
    """
    summary = {
        **describe_run(args, folder),
        "protocol": protocol,
        "checkpoints": list(checkpoints),
        "genotype": genotype,
        "parameters": parameters,
        "epochs": epochs,
        "seconds": seconds,
        "figures": dict(figures),
        "details": dict(details),
    }
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    with drawing():
        _write_page(folder, summary)
    return summary


def write_running_page(
    folder: Path, args: argparse.Namespace, history: Sequence[Mapping[str, Any]], epochs: int
) -> None:
    """Write report.html of a run that has `epochs` to do: its last epoch and the time left."""
    if not 0 < len(history) < epochs:
        return
    left = (epochs - len(history)) * history[-1]["seconds"]
    with drawing():
        status = f"epoch {len(history)} of {epochs} is done; about {describe_time(left)} left"
        details = {"last_epoch": history[-1]}
        _write_page(folder, {**describe_run(args, folder), "details": details}, status)


def _write_page(folder: Path, summary: Mapping[str, Any], status: str = "") -> None:
    title = f"{summary['script']}: {folder.name}"
    write_page(folder / PAGE, title, {folder: summary}, status=status)


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain table: a header, a rule, one line per row; numbers to two places, right-aligned."""
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            text.ljust(width) if index == 0 else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, cells)])
