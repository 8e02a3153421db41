"""sglang-kt: a plan as a command with the experts for the GPU marked, and such a command as a plan."""

from runtime_adapter.targets.sglang_kt.command import obstacles, read, simulate, write

__all__ = ["obstacles", "read", "simulate", "write"]
