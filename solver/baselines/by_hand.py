"""What people do with nothing but a count of layers and an out-of-memory error."""

from __future__ import annotations

from cost_models import CostModel
from profiles.placement import LayerPlacement, Placement
from solver.evaluate import judge


def even_layers(costs: CostModel, per_card: int | None = None) -> Placement:
    """Whole layers in order, `per_card` on each GPU (default: as even as they go), the rest on the last one.

    The embedding goes with the first layer and the head with the last. It does not look at memory at all, so it may
    not fit. Without GPUs everything is on the CPU.
    """
    gpus = [device.name for device in costs.hardware.gpus] or ["cpu"]
    n_layers = len(costs.profile.layers)
    if per_card is None:
        homes = [gpus[i * len(gpus) // n_layers] for i in range(n_layers)]
    else:
        homes = [gpus[min(i // per_card, len(gpus) - 1)] for i in range(n_layers)]
    layers = [
        LayerPlacement(attention=home, experts={} if layer.experts is None else {home: "all"})
        for home, layer in zip(homes, costs.profile.layers, strict=True)
    ]
    return Placement(embedding=homes[0], head=homes[-1], layers=layers)


def spill_experts(plan: Placement, costs: CostModel) -> Placement:
    """The cure by hand: on each GPU that overflows, the experts of its last layers go to the CPU until it fits.

    A GPU that overflows without any experts left is returned as it is.
    """
    layers = list(plan.layers)
    for gpu, short in judge(plan, costs).short_bytes.items():
        for i in reversed(range(len(layers))):
            experts = costs.layer(i).experts
            if short <= 0 or gpu == "cpu":
                break
            if layers[i].experts_device == gpu and experts is not None:
                layers[i] = layers[i].replace(experts={"cpu": "all"})
                short -= costs.weight_bytes(experts, gpu)
    return plan.replace(layers=tuple(layers))


def spilled_layers(costs: CostModel) -> Placement:
    """Layers split evenly, then the cure by hand."""
    return spill_experts(even_layers(costs), costs)


def experts_on_cpu(costs: CostModel) -> Placement:
    """Layers split evenly, all their experts on the CPU."""
    even = even_layers(costs)
    layers = [LayerPlacement(attention=p.attention, experts={"cpu": "all"} if p.experts else {}) for p in even.layers]
    return even.replace(layers=tuple(layers))
