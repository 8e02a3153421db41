"""KTransformers: a plan as injection rules, and such rules as a plan."""

from runtime_adapter.targets.ktransformers.writer import obstacles, read, simulate, write

__all__ = ["obstacles", "read", "simulate", "write"]
