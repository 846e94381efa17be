"""For developers: speed, the plain reference, faults, faces in photographs, other networks."""

import common.startup  # noqa: F401 (before torch, which takes seconds)
