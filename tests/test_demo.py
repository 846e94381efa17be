"""tools.demo: its commands and the folders that it may remove."""

from __future__ import annotations

import importlib
import shlex

from common import cli
from tools import demo


def test_demo_commands_parse():
    scripts = set()
    for text in demo.COMMANDS.values():
        script, *flags = shlex.split(text.format(out="demo"))
        module = importlib.import_module(script.removesuffix(".py"))
        module.build_parser().parse_args([*flags, "--data", "synthetic"])
        scripts.add(script)
    assert len(scripts) == 6


def test_demo_keeps_other_folders(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "log.txt").touch()
    assert cli.run_script(demo.main, demo.build_parser(), ["--out", str(tmp_path)]) == 2
    assert "no run of an earlier demo" in capsys.readouterr().err
    assert (tmp_path / "train" / "log.txt").exists()
