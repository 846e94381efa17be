"""For developers: speed, profile, the plain reference, the fault campaign."""

import common.startup  # noqa: F401 (before torch, which takes seconds)
