"""For developers: speed, profile, the plain reference, the fault campaign."""
