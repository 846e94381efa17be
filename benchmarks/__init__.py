"""For developers: speed, the plain reference, faults, faces in photographs, other networks."""

from runtime.startup import prepare

prepare()  # before torch is imported
