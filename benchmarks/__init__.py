"""For developers: speed, profile, the plain reference, the fault campaign."""

from runtime.startup import prepare

prepare()  # before torch is imported
