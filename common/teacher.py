"""Distillation: the flags that name a teacher, and what the loss then takes."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from common import arguments
from common.weights import load_members


def teacher_parser() -> argparse.ArgumentParser:
    """The flags of scripts that train on FER2013, whose classes a teacher knows, as a parent."""
    parser = argparse.ArgumentParser(add_help=False)
    # fmt: off
    add = parser.add_argument_group("the teacher").add_argument
    add("--teacher", type=arguments.names, default=[], metavar="X,Y,...",
        help="trained networks whose mean logits the network learns to give, named as "
        "ensemble.py's (default: none, as published)")
    add("--teacher_weight", type=arguments.fraction, default=0.5, metavar="W",
        help="share of the loss that --teacher has, the labels having the rest (default: 0.5, "
        "both alike)")
    add("--temperature", type=arguments.positive_float, default=2.0, metavar="T",
        help="what logits are divided by for --teacher (default: 2, which shows the classes that "
        "the teacher finds less likely without making all seven alike)")
    # fmt: on
    return parser


def teaching(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What `common.objective.objective` takes from the flags; UserError for what is no network."""
    if not args.teacher:
        return {}
    return {
        "teacher": load_members("--teacher", args.teacher, args.model_path, device),
        "temperature": args.temperature,
        "teacher_weight": args.teacher_weight,
    }
