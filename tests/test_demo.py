"""tools.demo: its commands and the folders that it may remove."""

from __future__ import annotations

import importlib
import shlex

from tools import demo


def test_demo_commands_parse():
    scripts = set()
    for text in demo.COMMANDS.values():
        script, *flags = shlex.split(text.format(out="demo"))
        module = importlib.import_module(script.removesuffix(".py"))
        module.build_parser().parse_args([*flags, "--data", "synthetic"])
        scripts.add(script)
    assert len(scripts) == 6
