"""Where a plan's predicted time goes: the judge's walk once more, with every term kept apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cost_models import CostModel, Step
from profiles.layer_map import device_order
from profiles.placement import Placement
from solver.evaluate import check_describes

SEVERAL = "several devices"
"""Where a split layer's experts are computed: its time is the slowest device's, whichever that is."""
LINKS = "links"
"""Where hops happen: between devices, on none."""
HAND_OVER, HOPS, COPIES = "hand-over", "hops", "copies"
WHAT = ("attention", "experts", "embedding", "head", HAND_OVER, HOPS, COPIES)
"""What a part of the time is spent on, in the order in which pictures stack them."""


@dataclass(frozen=True)
class Breakdown:
    """Seconds of the whole prompt and of the mean generated token, by (what, device), longest first.

    What is embedding, attention, experts or head, on the device that computes it; or `hand-over`, the fixed price of
    experts on another device than their attention, `hops` of hidden states on `links`, `copies` of weights.
    """

    prefill: dict[tuple[str, str], float]
    decode: dict[tuple[str, str], float]

    def places(self) -> list[str]:
        """Where time goes: devices in order, then `several devices` and `links` where there are any."""
        found = {place for step in (self.prefill, self.decode) for _, place in step}
        return [*device_order(found - {SEVERAL, LINKS}), *(place for place in (SEVERAL, LINKS) if place in found)]


def breakdown(placement: Placement, costs: CostModel) -> Breakdown:
    """The parts of a placement's time, whether it fits or not; together they are what `judge` predicts.

    Raises MoeplanError when it does not describe this model or machine.

    >>> from profiles import load_hardware, load_profile
    >>> costs = CostModel(load_profile("mixtral-8x7b"), load_hardware("1xRTX4090,ram=128GB"))
    >>> layers = [{"attention": "cuda:0", "experts": {"cpu": "all"}} for _ in costs.profile.layers]
    >>> found = breakdown(Placement(embedding="cpu", head="cuda:0", layers=layers), costs)
    >>> list(found.decode)[0]
    ('experts', 'cpu')
    """
    check_describes(placement, costs)
    return Breakdown(
        _seconds(placement, costs, costs.prefill_steps()), _seconds(placement, costs, [costs.decode_step()])
    )


def _seconds(placement: Placement, costs: CostModel, steps: Iterable[Step]) -> dict[tuple[str, str], float]:
    parts: dict[tuple[str, str], float] = defaultdict(float)
    for step in steps:
        _Parts(costs, step, parts).add(placement)
    return {part: parts[part] for part in sorted(parts, key=parts.__getitem__, reverse=True) if parts[part] > 0}


class _Parts:
    """The parts of one step."""

    def __init__(self, costs: CostModel, step: Step, parts: dict[tuple[str, str], float]) -> None:
        self.costs, self.step, self.parts = costs, step, parts

    def add(self, placement: Placement) -> None:
        here = placement.embedding
        self.block("embedding", 0, here)
        for i, layer in enumerate(placement.layers):
            self.hop(here, layer.attention)
            here = layer.attention
            self.block("attention", i, here)
            if len(layer.experts) == 1:
                self.experts(i, here, next(iter(layer.experts)))
            elif layer.experts:
                ids = {device: part for device, part in layer.experts.items() if part != "all"}
                self.parts["experts", SEVERAL] += self.costs.split_experts_s(i, here, ids, self.step)
        self.hop(here, placement.head)
        self.block("head", 0, placement.head)

    def block(self, part: str, layer: int, device: str) -> None:
        place = self.costs.runs_on(device)
        self.parts[part, place] += self.costs.block_s(part, layer, device, self.step)

    def hop(self, a: str, b: str) -> None:
        self.parts[HOPS, LINKS] += self.costs.hop_s(a, b, self.step.tokens)

    def experts(self, layer: int, attention: str, device: str) -> None:
        """Computed there, or on the attention's GPU once they are copied, as the judge decides."""
        costs = self.costs
        if costs.copies_experts(layer, attention, device, self.step):
            together = costs.copied_experts_s(layer, attention, device, self.step)
            here = costs.block_s("experts", layer, attention, self.step)
            self.parts["experts", attention] += here
            self.parts[COPIES, attention] += together - here
            return
        self.block("experts", layer, device)
        if costs.runs_on(device) != costs.runs_on(attention):
            self.parts[HAND_OVER, costs.runs_on(device)] += costs.sync_s(costs.runs_on(device))
            self.hop(attention, device)
            self.hop(device, attention)
