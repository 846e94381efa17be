"""Side programs around the six scripts: `python -m tools.NAME --help`."""
