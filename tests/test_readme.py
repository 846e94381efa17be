"""The commands and links of README.md and docs/."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image
from runs import ROOT, run

from data.synthetic.cross import draw_jaffe

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Makes any training short; runs of the README end in seconds with it.
SHORT = "--data synthetic --device cpu --epochs 1 --limit_batches 1 --init_channels 4 --layers 3"


def bash_lines(page: Path) -> list[str]:
    """The commands in the bash blocks of a page, with continued lines joined."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines]


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
    pytest.param(name, flags, id=f"{page.stem}: {line[:60]}")
    for page in PAGES
    for line in bash_lines(page)
    if "$" not in line and (found := script_of(shlex.split(line)))
    for name, flags in [found]
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
            if words[:1] == ["python"] and (words[1] != "-m" or words[2] != "pip"):
                assert script_of(words), f"{page.name}: {line}"


def test_seed_commands_run(tmp_path):
    lines = [
        line
        for line in bash_lines(ROOT / "README.md")
        if "seed-" in line or line.startswith("torchrun")
    ]
    assert len(lines) == 5
    for script in ("train_FER2013.py", "checkpoints", "tools"):
        (tmp_path / script).symlink_to(ROOT / script)
    for line in lines:
        words = shlex.split(line)
        if "train_FER2013.py" in words and "--resume" not in words:
            words += shlex.split(SHORT)
        head = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[words[0]]
        if words[1] == "-m":
            words[1:3] = ["-m", words[2]]
        here = ["env", f"PYTHONPATH={ROOT}", sys.executable]
        done = run([*here, *head, *words[1:]], cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert "mean" in done.stdout + done.stderr or words[0] == "torchrun"


def test_picture_commands_run(tmp_path):
    lines = [line for line in bash_lines(ROOT / "README.md") if "demo/faces" in line]
    assert len(lines) == 3
    for line in lines:
        words = [word.replace("demo/", f"{tmp_path}/") for word in shlex.split(line)]
        done = run([sys.executable, *words[1:], *_out(words, tmp_path)], cwd=ROOT)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (tmp_path / "out" / "predictions.csv").is_file()


def _out(words: list[str], folder: Path) -> list[str]:
    return ["--out", str(folder / "out"), "--device", "cpu"] if "tools.predict" in words else []


def snippet_of(page: Path, word: str) -> str:
    """The block of Python of a page that holds `word`."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    (found,) = [block for block in blocks if word in block]
    return found


def test_snippet_with_checkpoints_runs():
    snippet = snippet_of(ROOT / "README.md", "load_network")
    done = run([sys.executable, "-c", snippet + "\nprint(tuple(logits.shape))"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 7)"


@pytest.mark.parametrize("page", ["README.md", "auto_fernet/README.md", "docs/photos.md"])
def test_snippet_of_the_package_runs(page, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    picture = Image.fromarray(draw_jaffe(takes=1).images[0, 0].numpy())
    for name in ("photo.jpg", "face.png"):
        picture.resize((800, 800)).save(tmp_path / name)
    words = [sys.executable, "-c", snippet_of(ROOT / page, "Predictor")]
    done = run(["env", f"PYTHONPATH={ROOT}", *words], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


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
