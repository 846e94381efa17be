"""For developers: speed, profile, the plain reference, the fault campaign."""

import runtime.startup  # noqa: F401 (before torch, which takes seconds)
