"""Shares of memory that are never planned for. What engines reach of a machine's speed is in `data/engines.yaml`."""

GPU_SAFETY_MARGIN = 0.10
CPU_SAFETY_MARGIN = 0.05
"""Shares of memory never planned for: fragmentation, the driver's context, the operating system (docs/model.md)."""
