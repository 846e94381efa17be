"""The manifest of a folder of weights: which file is which, and its check sum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import UserError, reading
from runtime.files import atomic_write, write_text
from runtime.logs import locked

MANIFEST = "MANIFEST.json"


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of `folder`/MANIFEST.json by name, none without one.

    An entry says `file` and `sha256` at least; tools.export_weights writes the rest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    with reading(path, "entries by name, each with its file and sha256"):
        entries = json.loads(path.read_bytes())
        return {
            name: {**each, "file": each["file"], "sha256": each["sha256"]}
            for name, each in entries.items()
        }


def publish(draft: Path, folder: Path, name: str, entry: Mapping[str, Any]) -> Path:
    """Put the weights `draft` into `folder` as `name`.pt, with an entry in its manifest.

    One process at a time does so. A killed one leaves the old weights or the new ones, and a
    manifest that admits them: meanwhile the entry says also what it `replaces`.
    """
    path = folder / f"{name}.pt"
    content, found = draft.read_bytes(), {"file": path.name, "sha256": digest(draft)}
    with locked(folder):
        entries = read_manifest(folder)
        before = {"replaces": digest(path)} if path.is_file() else {}
        _write_manifest(folder, {**entries, name: {**entry, **found, **before}})
        atomic_write(path, lambda file: file.write(content))
        _write_manifest(folder, {**entries, name: {**entry, **found}})
    return path


def _write_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    write_text(folder / MANIFEST, json.dumps(entries, indent=2, sort_keys=True) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verify(path: Path) -> None:
    """Raise UserError when a manifest beside `path` names the file with another digest."""
    for name, entry in read_manifest(path.parent).items():
        known = (entry["sha256"], entry.get("replaces"))
        if entry["file"] == path.name and (found := digest(path)) not in known:
            raise UserError(
                f"{path}: sha256 {found}, expected {entry['sha256']} as {MANIFEST} says of {name}; "
                "get the file again"
            )
