"""Profile + hardware + workload -> bytes and seconds per block, device and link."""

from cost_models.cost_model import CostModel, Step

__all__ = ["CostModel", "Step"]
