"""The manifest of a folder of weights: which file is which, and its check sum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import UserError, reading
from runtime.files import atomic_write, write_text

MANIFEST = "MANIFEST.json"


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of `folder`/MANIFEST.json by name, none without one.

    An entry says `file` and `sha256` at least; tools.export_weights writes the rest, and
    tools.model_card its `evaluations`.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    with reading(path, "entries by name, each with its file and sha256"):
        entries = json.loads(path.read_bytes())
        for entry in entries.values():
            _ = entry["file"], entry["sha256"]
        return entries


def publish(draft: Path, folder: Path, name: str, entry: Mapping[str, Any]) -> Path:
    """Put the weights `draft` into `folder` as `name`.pt, with an entry in its manifest.

    Weights of a process that is killed between the two are refused by `verify` until they are
    published again. One process at a time may call it.
    """
    path = folder / f"{name}.pt"
    content, entries = draft.read_bytes(), read_manifest(folder)
    entries[name] = {**entry, "file": path.name, "sha256": digest(draft)}
    atomic_write(path, lambda file: file.write(content))
    write_manifest(folder, entries)
    return path


def write_manifest(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `folder`/MANIFEST.json; atomic."""
    write_text(folder / MANIFEST, json.dumps(entries, indent=2, sort_keys=True) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verify(path: Path) -> None:
    """Raise UserError when a manifest beside `path` names the file with another digest."""
    for name, entry in read_manifest(path.parent).items():
        if entry["file"] == path.name and (own := digest(path)) != entry["sha256"]:
            raise UserError(
                f"{path}: sha256 {own}, expected {entry['sha256']} as {MANIFEST} says of {name}; "
                "get the file again"
            )
