"""For developers: speed, profile, the plain reference, the fault campaign."""

import common.threads  # noqa: F401 (torch reads it when it is loaded)
