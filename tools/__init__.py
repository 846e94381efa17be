"""Side programs around the six scripts: `python -m tools.NAME --help`."""

import common.threads  # noqa: F401 (torch reads it when it is loaded)
