"""Replacements of torch's code that is slow or wrong on CPUs; the results are torch's."""
