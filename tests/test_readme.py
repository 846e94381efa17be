"""The commands, snippets and links of README.md and docs/."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from runs import ROOT, run

from genotypes import resolve_genotype

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Makes any training short; commands of the pages end in seconds with it.
SHORT = "--data synthetic --device cpu --epochs 1 --limit_batches 1 --init_channels 4 --layers 3"


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text("utf-8"), re.M | re.S)


def bash_lines(page: Path) -> list[str]:
    """The commands in the bash blocks of a page, without comments and with joined lines."""
    lines = "\n".join(blocks_of(page, "bash")).replace("\\\n", " ").splitlines()
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]


def script_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The module and the flags of a `python X.py` or `python -m X` command of this repository."""
    if words[:1] != ["python"] or len(words) < 2:
        return None
    if words[1] == "-m":
        name, flags = words[2], words[3:]
    elif words[1].endswith(".py"):
        name, flags = words[1].removesuffix(".py"), words[2:]
    else:
        return None
    return (name, flags) if (ROOT / f"{name.replace('.', '/')}.py").is_file() else None


COMMANDS = [
    pytest.param(*command, id=f"{page.stem}: {line[:60]}")
    for page in PAGES
    for line in bash_lines(page)
    if "$" not in line and (command := script_of(shlex.split(line)))
]


@pytest.mark.parametrize("name, flags", COMMANDS)
def test_command_parses(name, flags):
    if "--help" not in flags:
        importlib.import_module(name).build_parser().parse_args(flags)


def test_documented_scripts_exist():
    """A command of a script that does not exist would not be among COMMANDS."""
    for page in PAGES:
        for line in bash_lines(page):
            words = shlex.split(line.replace("$", ""))
            if words[:1] == ["python"] and words[1:3] != ["-m", "pip"]:
                assert script_of(words), f"{page.name}: {line}"


def test_resume_and_torchrun_commands_run(tmp_path):
    for script in ("train_FER2013.py", "checkpoints"):
        (tmp_path / script).symlink_to(ROOT / script)
    lines = [line for line in bash_lines(ROOT / "docs" / "cluster.md") if "$" not in line]
    lines = [line for line in lines if "short" in line or "--standalone" in line]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        if "--resume" not in words:
            words += shlex.split(SHORT)
        head = ["-m", "torch.distributed.run"] if words[0] == "torchrun" else []
        here = ["env", f"PYTHONPATH={ROOT}", sys.executable]
        done = run([*here, *head, *words[1:]], cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize(
    "page, command", [("README.md", "auto-fernet images"), ("docs/photos.md", "python -m tools.pr")]
)
def test_command_on_drawn_faces_runs(page, command, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    (line,) = [line for line in bash_lines(ROOT / page) if line.startswith(command)]
    words = shlex.split(line.replace("auto-fernet", "python -m auto_fernet"))
    done = run([sys.executable, *words[1:], "--out", str(tmp_path)], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    answers = pd.read_csv(tmp_path / "predictions.csv")
    assert answers["expression"].tolist() == ["happy", "sad", "surprise"]


def snippet_of(page: Path, word: str) -> str:
    (snippet,) = [block for block in blocks_of(page, "python") if word in block]
    return snippet


def test_snippet_with_checkpoints_runs():
    snippet = snippet_of(ROOT / "docs" / "photos.md", "load_network")
    done = run([sys.executable, "-c", snippet + "\nprint(tuple(logits.shape))"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 7)"


@pytest.mark.parametrize("page", ["README.md", "auto_fernet/README.md", "docs/photos.md"])
def test_snippet_of_the_package_runs(page, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    (tmp_path / "images").symlink_to(ROOT / "images")
    picture = Image.open(ROOT / "images/faces/happy.png").resize((800, 800))
    for name in ("photo.jpg", "face.png"):
        picture.save(tmp_path / name)
    words = [sys.executable, "-c", snippet_of(ROOT / page, "Predictor")]
    done = run(["env", f"PYTHONPATH={ROOT}", *words], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_genotypes_of_the_results_are_read():
    file = ROOT / "docs" / "genotypes" / "cells.txt"
    names = re.findall(r"^(\w+) = ", file.read_text(), re.M)
    assert len({resolve_genotype(f"{file}:{name}") for name in names}) == len(names) == 9


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http", "mailto")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, target
