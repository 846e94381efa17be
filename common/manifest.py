"""The weights that come with the code: `checkpoints/`, and the manifest that says what they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from data.bounded import read_json
from utils import UserError, write_text

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
MANIFEST = "MANIFEST.json"


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of `folder`/MANIFEST.json by name, none without one; UserError for another form.

    An entry says `file` and `sha256` at least; tools.export_weights writes the rest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    entries = read_json(path, "a manifest")
    for entry in entries.values() if isinstance(entries, dict) else [None]:
        if not isinstance(entry, dict) or not {"file", "sha256"} <= entry.keys():
            raise UserError(f"{path}: expected entries by name, each with its file and sha256")
    return entries


def write_entry(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """Add the entry `name` to the manifest of `folder`, or replace it; the others stay."""
    entries = {**read_manifest(folder), name: entry}
    write_text(folder / MANIFEST, json.dumps(entries, indent=2, sort_keys=True) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verify(path: Path) -> None:
    """Raise UserError when a manifest beside `path` names the file, but not as it is."""
    for name, entry in read_manifest(path.parent).items():
        if entry["file"] != path.name:
            continue
        found = digest(path)
        if found != entry["sha256"]:
            raise UserError(
                f"{path}: sha256 {found}, expected {entry['sha256']} as {MANIFEST} says of {name}; "
                "get the file again"
            )
