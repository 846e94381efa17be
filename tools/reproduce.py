"""Run the whole method: search, training, relabelling and its control, ensemble, CK+ and JAFFE.

    python -m tools.reproduce --data data/ --preset laptop

Each stage is a script with a run folder in --out. Started again with the same flags, it skips the
stages that are done and resumes the one that was interrupted. Writes `report.html` over all stages,
with the figures of the paper beside ours, and `figures.csv`, the same table. --preset demo takes
minutes on drawn sets, laptop two hours on one core; paper has the settings of the published
commands on the cells that it finds, and takes weeks on a CPU. Sets that --data does not hold are
left out.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch.nn import functional as F

from common import arguments, cli
from common.page import PAGE, describe_time, read_summary, write_page
from common.report import count_images, format_table
from common.start import resolve_device
from data.ck48 import load_ck48
from data.jaffe import load_jaffe
from genotypes import Auto_FERNet
from model import Network
from runtime.errors import UserError
from runtime.files import make_folder, write_rows
from runtime.run import autocast
from tools.compare import summarise

RELABELLED = (
    "relabel_training.py --checkpoint {out}/train --learning_rate 0.001 --epochs 3 "
    "--limit_batches 100 --drop_path_prob 0 --nesterov --affine 0.1 --ema 0.99"
)
# By preset a line for each stage: its minutes where `timed_step` takes REFERENCE seconds, its name
# and its command.
PRESETS = {
    "demo": """
        1   search    search.py --init_channels 4 --layers 3 --batch_size 32 --batch_increase 8 \
            --warmup_dec_epoch 1 --decision_freq 1 --limit_batches 3
        1   train     train_FER2013.py --arch {out}/search --init_channels 8 --layers 3 --epochs 5 \
            --batch_size 32 --learning_rate 0.1 --drop_path_prob 0
        0.5 relabel   relabel_training.py --checkpoint {out}/train --epochs 2 --batch_size 32 \
            --learning_rate 0.01 --relabel_threshold 0.2 --fes True --fes_threshold 0.03
        0.2 ensemble  ensemble.py --model_names {out}/train,{out}/relabel
        0.4 ck48      test_CK48.py --checkpoint {out}/relabel --folds 3 --epochs 4
        0.1 jaffe     test_JAFFE.py --checkpoint {out}/relabel
        """,
    "laptop": f"""
        42  search    search.py --recipe laptop --seed 0
        40  train     train_FER2013.py --arch {{out}}/search {arguments.RETRAINING["laptop"]}
        5   relabel   {RELABELLED}
        5   control   {RELABELLED} --relabel_threshold 0
        2   ensemble  ensemble.py --model_names {{out}}/train,{{out}}/relabel,{{out}}/control
        10  ck48      test_CK48.py --checkpoint {{out}}/relabel --learning_rate 0.01 --epochs 8
        3   jaffe     test_JAFFE.py --checkpoint {{out}}/relabel --mode finetune \
            --learning_rate 0.01 --epochs 8
        """,
    "paper": """
        4000  search    search.py --batch_size 24 --batch_increase 8 --learning_rate 0.025
        20000 train     train_FER2013.py --arch {out}/search --batch_size 24 \
            --learning_rate 0.025 --layers 12 --auxiliary_weight 0.4
        3000  relabel   relabel_training.py --batch_size 64 --learning_rate 0.001 \
            --relabel_threshold 0.2 --fes True --fes_threshold 0.03 --checkpoint {out}/train
        3000  control   relabel_training.py --batch_size 64 --learning_rate 0.001 \
            --relabel_threshold 0 --fes True --fes_threshold 0.03 --checkpoint {out}/train
        5     ensemble  ensemble.py --model_names {out}/train,{out}/relabel --layers 12,12 \
            --batch_size 64
        700   ck48      test_CK48.py --batch_size 64 --learning_rate 0.01 --checkpoint {out}/relabel
        1     jaffe     test_JAFFE.py --checkpoint {out}/relabel
        """,
}
REFERENCE = 0.56  # seconds
# By stage the split or set, the result, and its figure in the paper.
RESULTS = {
    "train": ("PrivateTest", "one network", "73.11"),
    "relabel": ("PrivateTest", "relabelling with FES", "73.78"),
    "control": ("PrivateTest", "the same without changed labels", ""),
    "ensemble": ("PrivateTest", "ensemble", "74.98, of 6"),
    "ck48": ("CK48", "CK+", "98.89, 10 folds"),
    "jaffe": ("JAFFE", "JAFFE", "97.14"),
}


class Stage(NamedTuple):
    """A script to run: its folder, its command line and its minutes on the reference machine."""

    folder: Path
    words: list[str]
    minutes: float

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def command(self) -> str:
        return shlex.join(["python", *self.words])

    def next_words(self) -> list[str] | None:
        """The command line that starts or resumes the stage; None when it is done.

        Raises UserError where the folder is of another command.
        """
        summary = read_summary(self.folder)
        if summary is None:
            resumable = (self.folder / "checkpoint.pt").is_file()
            return [self.words[0], "--resume", str(self.folder)] if resumable else self.words
        if summary.get("command") != self.command:
            raise UserError(
                f"{self.folder}: made by {summary.get('command')}, expected {self.command}; choose "
                "another --out"
            )
        return None

    def clear(self) -> None:
        """Remove what was left by an evaluation of the same command that was killed."""
        log = self.folder / "log.txt"
        if log.is_file() and self.command in log.read_text("utf-8", errors="replace"):
            shutil.rmtree(self.folder)


def build_parser() -> argparse.ArgumentParser:
    parser = arguments.new_parser(__doc__, "python -m tools.reproduce")
    # fmt: off
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="laptop", help="which commands to run")
    add("--data", metavar="PATH",
        help="the folder of FER2013, CK+ and JAFFE, or 'synthetic' (default: data/, of the preset "
        "demo synthetic)")
    add("--out", metavar="FOLDER",
        help="where the run folders are made (default: saved_models/reproduce_PRESET)")
    add("--dry_run", action="store_true", help="print the commands and end")
    # fmt: on
    arguments.add_device_argument(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the stages that are not done; return the summaries by stage."""
    data = args.data or ("synthetic" if args.preset == "demo" else "data/")
    out = Path(args.out or f"saved_models/reproduce_{args.preset}")
    stages = read_preset(args.preset, data, out, args.device)
    for name, load in (("ck48", load_ck48), ("jaffe", load_jaffe)):
        chosen = [stage for stage in stages if stage.name != name]
        if len(chosen) < len(stages) and (missing := missing_set(load, data)):
            print(f"{name} is left out: {missing}")
            stages = chosen
    if args.dry_run:
        print(*(stage.command for stage in stages), sep="\n")
        return {}
    make_folder("--out", str(out))
    run_stages(stages, args)
    summaries = {stage.name: read_summary(stage.folder) or {} for stage in stages}
    rows = [table_row(name, summaries[name]) for name in RESULTS if name in summaries]
    write_rows(rows, out / "figures.csv")
    folders = {out / name: summary for name, summary in summaries.items()}
    write_page(out / PAGE, f"Auto-FERNet, preset {args.preset}", folders, overview=rows)
    columns = list(rows[0])[:-1]  # not the commands
    print(f"\n{format_table(columns, [[row[name] for name in columns] for row in rows])}")
    print(f"\nthe genotype: {summaries['train']['genotype']}")
    print(f"\nall figures and pictures: {out / PAGE}")
    return summaries


def read_preset(preset: str, data: str, out: Path, device: str) -> list[Stage]:
    """The stages of a preset, with their data, device and run folders."""
    stages = []
    for line in PRESETS[preset].strip().splitlines():
        minutes, name, command = line.split(maxsplit=2)
        words = [word.format(out=out) for word in command.split()]
        words += ["--data", data, "--model_path", str(out), "--save", name]
        words += ["--device", device] if device != "auto" else []
        stages.append(Stage(out / name, words, float(minutes)))
    return stages


def missing_set(load: Callable[[str], Any], data: str) -> str:
    """Why `load` finds no set in `data`; "" where it does."""
    try:
        load(data)
    except UserError as error:
        return str(error).split(";")[0]
    return ""


def run_stages(stages: list[Stage], args: argparse.Namespace) -> None:
    """Run what is not done of each stage, saying how long the rest will take."""
    todo = [stage for stage in stages if stage.next_words() is not None]
    left, slower = sum(stage.minutes for stage in todo), 1.0
    if args.preset != "demo" and todo:
        slower = timed_step(args.device) / REFERENCE
    done = spent = 0.0  # minutes of the reference machine and of this one
    for number, stage in enumerate(todo, 1):
        estimate = f"about {describe_time(60 * slower * left)} left"
        print(f"\nstage {number} of {len(todo)}: {stage.name}; {estimate}", flush=True)
        words = stage.next_words() or []
        if "--resume" not in words:
            stage.clear()
        print(f"$ {shlex.join(['python', *words])}", flush=True)
        started = time.monotonic()
        status = cli.run_command(words, resume=sys.argv[1:])
        if status != 0:
            raise UserError(
                f"{stage.name}: {words[0]} ended with status {status}, expected 0; the same "
                "command goes on from there"
            )
        left -= stage.minutes
        if "--resume" not in words:  # else it was done in part
            done, spent = done + stage.minutes, spent + (time.monotonic() - started) / 60
            slower = spent / done


def timed_step(device_name: str) -> float:
    """Seconds of a training step of the small network, 64 images of 44x44: the best of three."""
    device = resolve_device(argparse.Namespace(device=device_name, gpu=None))
    model = Network(16, 7, 8, False, Auto_FERNet).to(device).train()
    images, labels = torch.rand(64, 1, 44, 44, device=device), torch.arange(64, device=device) % 7
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        with autocast(device, "auto"):
            logits = model(images)[0]
        F.cross_entropy(logits.float(), labels).backward()
        logits.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def table_row(name: str, summary: Mapping[str, Any]) -> dict[str, str]:
    """The row of a stage: the paper's figure, ours, its interval and n, protocol and command.

    The interval of folds is that of their mean by Student's t, of images as if independent.
    """
    split, result, paper = RESULTS[name]
    figure = summary["figures"][split]
    half = figure["interval95"]
    if "folds" in figure:
        half = summarise(pd.Series(figure["folds"]))["_interval95"]
    return {
        "result": result,
        "paper %": paper,
        "ours %": f"{figure['accuracy']:.2f}",
        "± 95 %": f"{half:.2f}",
        "images": count_images(figure),
        "protocol": summary["protocol"] or "",
        "command": summary["command"],
    }


if __name__ == "__main__":
    sys.exit(cli.run_script(main, build_parser()))
