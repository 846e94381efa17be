"""The benchmarks by their real command lines, at sizes that take seconds."""

from __future__ import annotations



