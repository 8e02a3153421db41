"""Readers of measured runs: `read_runs` takes a file of any known form."""

from profiles.runs.door import read_runs

__all__ = ["read_runs"]
