"""The synthetic data sets: drawn faces, and their files in the forms of the real sets."""
