"""What one step of a placement asks of a machine, block by block, before any speed is put to it.

Speeds are fitted to measured runs on it: `cost_models/calibrate.py` does it for one machine, `benchmarks/fidelity.py`
for engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cost_models.cost_model import CostModel, Step
from cost_models.roofline import UNTUNED, Work, roofline_s
from profiles.errors import MoeplanError
from profiles.hardware import Device
from profiles.placement import Placement


@dataclass(frozen=True)
class Ledger:
    """`work`: how often each device is given which work; `syncs`: how often a layer's experts are handed to a device;
    seconds of hops and of weights that are copied."""

    work: Mapping[tuple[str, Work], int]
    syncs: Mapping[str, int]
    hops_s: float
    copies_s: float

    def seconds(self, costs: CostModel, devices: Mapping[str, Device] | None = None, link: float = 1.0) -> float:
        """Seconds of the step under the costs' engine. `devices` replace the machine's, say with another calibration;
        copies are `link` times as fast."""
        places = costs.device if devices is None else devices
        busy = sum(n * roofline_s(places[d], costs.habits(places[d]), work) for (d, work), n in self.work.items())
        return (
            busy + sum(n * sync_s(costs, places[d]) for d, n in self.syncs.items()) + self.hops_s + self.copies_s / link
        )


def sync_s(costs: CostModel, device: Device) -> float:
    """The fixed price of handing experts to a device, as calibrated."""
    known = costs.habits(device).sync_s if device.sync_s is None else device.sync_s
    return known * (device.calibration or UNTUNED).sync


def ledger(placement: Placement, costs: CostModel, step: Step, *, by_rule: bool = False) -> Ledger:
    """The ledger of one step as it is planned, so that its seconds are those of a plan's prediction; or `by_rule`, as
    an engine that was measured copies experts when nobody tells it otherwise.

    A layer whose experts are split is refused with MoeplanError. Times measured by block are ignored for the formula.

    >>> from profiles import load_hardware, load_profile
    >>> costs = CostModel(load_profile("mixtral-8x7b"), load_hardware("1xRTX4090"), target="llama.cpp")
    >>> layers = [{"attention": "cuda:0", "experts": {"cpu": "all"}} for _ in costs.profile.layers]
    >>> found = ledger(Placement(embedding="cpu", head="cuda:0", layers=layers), costs, costs.decode_step())
    >>> found.syncs, sum(found.work.values())
    ({'cpu': 32}, 66)
    """
    book, here = _Book(costs, step, by_rule), placement.embedding
    book.run("embedding", 0, here)
    for i, layer in enumerate(placement.layers):
        book.hop(here, layer.attention)
        here = layer.attention
        book.run("attention", i, here)
        if layer.experts:
            if layer.experts_device is None:
                raise MoeplanError(f"layers[{i}].experts: split between devices; only whole layers can be calibrated")
            book.experts(i, here, layer.experts_device)
    book.hop(here, placement.head)
    book.run("head", 0, placement.head)
    return Ledger(dict(book.work), dict(book.syncs), book.hops_s, book.copies_s)


class _Book:
    """A ledger that is being written."""

    def __init__(self, costs: CostModel, step: Step, by_rule: bool) -> None:
        self.costs, self.step, self.by_rule = costs, step, by_rule
        self.work: Counter[tuple[str, Work]] = Counter()
        self.syncs: Counter[str] = Counter()
        self.hops_s = self.copies_s = 0.0

    def run(self, part: str, layer: int, device: str) -> None:
        costs, block = self.costs, self.costs.block(part, layer)
        place = costs.runs_on(device)
        tokens = self.step.tokens * costs.workload.batch_size
        context = self.step.context if part == "attention" else 0.0
        self.work[place, costs.work(block, part, costs.device[place], tokens, context)] += 1
        self.copies_s += costs.copied_s(device, place, costs.weight_bytes(block, device))

    def hop(self, a: str, b: str) -> None:
        self.hops_s += self.costs.hop_s(a, b, self.step.tokens)

    def experts(self, layer: int, attention: str, device: str) -> None:
        """Where the experts are computed: there, or on the attention's GPU once they are copied."""
        costs, step = self.costs, self.step
        if costs.copies_experts(layer, attention, device, step, by_rule=self.by_rule):
            self.copies_s += costs.copied_s(
                device, attention, costs.weight_bytes(costs.block("experts", layer), device)
            )
            self.run("experts", layer, attention)
            return
        self.run("experts", layer, device)
        if costs.runs_on(device) != costs.runs_on(attention):
            self.syncs[costs.runs_on(device)] += 1
            self.hop(attention, device)
            self.hop(device, attention)
