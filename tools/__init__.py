"""Side programs around the six scripts: `python -m tools.NAME --help`."""

import common  # noqa: F401 (first, as torch takes seconds)
