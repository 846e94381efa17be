"""Imports run one way, from scripts down to runtime, and no function has too many parameters."""

from __future__ import annotations

import ast
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

import pytest
from runs import ROOT

# No file imports one of a higher floor.
FLOORS = {
    name: floor
    for floor, names in enumerate(
        [
            "auto_fernet runtime",
            "utils kernels",
            "data operations genotypes",
            "model model_search relabelling recipe",
            "engine architect sgas",
            "common",
            "search train_FER2013 relabel_training ensemble test_CK48 test_JAFFE hubconf",
            "tools",
            "benchmarks",
            "tests",
        ]
    )
    for name in names.split()
}
# Of these every import of ours is of the same package.
INDEPENDENT = ("runtime", "kernels", "auto_fernet")
MOST_PARAMETERS = 10

Sources = dict[str, str]  # text by path from the repository root


@pytest.fixture(scope="module")
def sources() -> Sources:
    """All Python files but those that git ignores."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = {path for path in found.stdout.splitlines() if (ROOT / path).is_file()}
    return {path: (ROOT / path).read_text() for path in paths}


def module_of(path: str) -> str:
    """The name by which a file is imported."""
    parts = PurePosixPath(path).with_suffix("").parts
    if parts[0] == "tests":
        parts = parts[1:]  # pytest puts the folder on the path
    return ".".join(parts).removesuffix(".__init__")


def imported_names(path: str, source: str) -> set[str]:
    """All names that a file imports, also inside functions: `a.b.c` of `from a.b import c`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = PurePosixPath(path).parts[: -node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def import_graph(sources: Sources) -> dict[str, set[str]]:
    """The files of ours that each file imports."""
    paths = {module_of(path): path for path in sources}

    def resolve(name: str) -> str | None:
        while name and name not in paths:
            name = name.rpartition(".")[0]
        return paths.get(name)

    graph = {
        path: {resolve(name) for name in imported_names(path, source)} - {None, path}
        for path, source in sources.items()
    }
    return graph  # type: ignore[return-value]


def top_of(path: str) -> str:
    return PurePosixPath(path).parts[0].removesuffix(".py")


def wrong_imports(sources: Sources) -> list[str]:
    """What is wrong with the imports, a line each."""
    graph = import_graph(sources)
    wrong = [f"{path}: has no floor" for path in graph if top_of(path) not in FLOORS]
    for path, targets in graph.items():
        for target in targets:
            if FLOORS.get(top_of(target), 0) > FLOORS.get(top_of(path), 0):
                wrong.append(f"{path} imports {target}, which is above")
            elif top_of(path) in INDEPENDENT and top_of(target) != top_of(path):
                wrong.append(f"{path} imports {target}, but should import nothing of ours")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.append(f"cycle: {' <- '.join(error.args[1])}")
    return wrong


def test_imports_run_one_way(sources):
    assert {"runtime/files.py", "engine.py", "search.py", "tests/test_imports.py"} <= sources.keys()
    graph = import_graph(sources)
    assert {"utils.py", "data/types.py", "model.py"} <= graph["engine.py"]
    assert "tests/runs.py" in graph["tests/test_imports.py"]
    assert wrong_imports(sources) == []


def long_signatures(sources: Sources) -> list[str]:
    """Functions outside tests with more than MOST_PARAMETERS parameters, self not counted."""
    found = []
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and top_of(path) != "tests":
                a = node.args
                each = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
                count = sum(arg is not None and arg.arg not in ("self", "cls") for arg in each)
                if count > MOST_PARAMETERS:
                    found.append(f"{path}: {node.name} has {count} parameters")
    return found


def test_functions_have_few_parameters(sources):
    assert long_signatures(sources) == []
