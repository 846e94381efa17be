"""Side programs around the six scripts: `python -m tools.NAME --help`."""

import runtime.startup  # noqa: F401 (before torch, which takes seconds)
