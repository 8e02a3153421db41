"""transformers and accelerate: a plan as a `device_map`, and such a map as a plan."""

from runtime_adapter.targets.accelerate.device_map import obstacles, read, simulate, write

__all__ = ["obstacles", "read", "simulate", "write"]
