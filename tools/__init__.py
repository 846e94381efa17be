"""Side programs around the six scripts: `python -m tools.NAME --help`."""

from runtime.startup import prepare

prepare()  # before torch is imported
