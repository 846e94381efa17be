"""What every program needs while it runs; imports nothing else of this repository."""
