"""The splits of a set whose classes need not be known."""

from __future__ import annotations

from pathlib import Path

from data.sets import load_set
from data.types import Split


# To be removed when every script uses `load_set`.
def load_fer2013(path: str | Path) -> dict[str, Split]:
    """The splits of `load_set(path)`."""
    return load_set(path).splits
