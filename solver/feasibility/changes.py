"""The smallest single changes that make a model fit, each found by trying."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction

from cost_models import CostModel
from profiles import load_profile
from profiles.device_names import counted_on, gpu_index, gpu_type
from profiles.errors import MoeplanError
from profiles.hardware import Device, Hardware, Pool
from profiles.model import ModelProfile
from profiles.presets import model_config_preset
from profiles.workload import MOST_CHUNKS, Workload
from solver.feasibility.fits import Budget, fits
from solver.feasibility.needs import Demand, demand_of
from solver.rules import Allowed, Pins
from solver.shared import Room

MOST_MORE_GPUS = 64
MOST_DEVICES = 1024
GB = 10**9
MOST_GB = 10**6
MARGIN_STEP = Fraction("0.005")
LEAST_MARGIN = Fraction("0.02")
FINE_TO_COARSE = ("bf16", "fp8", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")


class Changes:
    """What-if questions about a request that does not fit, answered as far as `budget` goes.

    Each answer is the smallest change of its kind that was found to fit: with the next smaller one nothing fits, or the
    work that one question is worth did not settle it. None where no such change helps, or where none was found.
    """

    def __init__(self, costs: CostModel, pins: Pins | None, budget: Budget, *, whole_layers: bool, split: bool) -> None:
        self._costs, self._pins, self._budget = costs, pins, budget
        self._whole_layers, self._split = whole_layers, split
        self._allowed = Allowed(costs, costs.target, pins)
        self.demand = self._demand_of(costs, self._allowed)

    # ---- the workload ------------------------------------------------------------------------------------------

    def longest_context(self) -> int | None:
        """Below the one asked for, and no shorter than prompt and generated tokens."""
        asked = self._costs.workload
        least = asked.prompt_tokens + asked.generated_tokens
        return _largest(least, asked.context_tokens - 1, lambda n: self.fits_for(asked.replace(context_tokens=n)))

    def largest_batch(self) -> int | None:
        asked = self._costs.workload
        return _largest(1, asked.batch_size - 1, lambda n: self.fits_for(asked.replace(batch_size=n)))

    def largest_chunk(self) -> int | None:
        """A chunk that leaves cache for more needs moments that larger ones do not (docs/workspace.md), so bytes fall
        with the chunk only on either side of that length."""
        asked = self._costs.workload
        least, turn = -(-asked.prompt_tokens // MOST_CHUNKS), asked.context_tokens - asked.generated_tokens
        below = asked.prefill_chunk - 1
        for low, high in ((max(least, turn), below), (least, min(below, turn - 1))):
            found = _largest(low, high, lambda n: self.fits_for(asked.replace(prefill_chunk=n)))
            if found is not None:
                return found
        return None

    def fits_for(self, workload: Workload) -> bool | None:
        """Whether the model fits when only that is asked for; None where the work ran out."""
        demand = self._demand_of(self._costs, self._allowed, workload)
        return self._fit(demand, self._costs.hardware)

    # ---- the machine -------------------------------------------------------------------------------------------

    def largest_margin(self) -> float | None:
        """Below the one asked for, in steps of `MARGIN_STEP` from 0."""
        steps = math.ceil(Fraction(str(self._costs.safety_margin)) / MARGIN_STEP) - 1
        least = math.ceil(LEAST_MARGIN / MARGIN_STEP)

        def fit(n: int) -> bool | None:
            return self._fit(self.demand, self._costs.hardware, float(n * MARGIN_STEP))

        found = _largest(least, steps, fit)
        return None if found is None else float(found * MARGIN_STEP)

    def more_memory(self, kind: str) -> int | None:
        """So many GB, as bought, of RAM or on every GPU, where it is not shared."""
        hardware = self._costs.hardware
        return self._more({d.name for d in hardware.devices if d.kind == kind and d.pool is None}, ())

    def more_shared_memory(self) -> int | None:
        """So many GB in every pool, which each of its devices may have."""
        hardware = self._costs.hardware
        return self._more({d.name for d in hardware.devices if d.pool is not None}, hardware.pools)

    def _more(self, names: Collection[str], pools: Sequence[Pool]) -> int | None:
        """So many GB more on the devices of those names, and in `pools`."""
        hardware = self._costs.hardware

        def fit(n: int) -> bool | None:
            devices = tuple(
                device.replace(memory_bytes=device.memory_bytes + n * GB) if device.name in names else device
                for device in hardware.devices
            )
            larger = tuple(pool.replace(memory_bytes=pool.memory_bytes + n * GB) for pool in pools) or hardware.pools
            return self._fit(self.demand, hardware.replace(devices=devices, pools=larger))

        return _smallest(MOST_GB, fit) if names else None

    def more_gpus(self) -> tuple[int, Device] | None:
        """So many more of the GPU with most usable memory, the first of them; of GPUs with memory of their own."""
        hardware = self._costs.hardware
        own = [gpu for gpu in hardware.gpus if gpu.pool is None]
        if not own:
            return None
        usable = dict(zip(self._costs.device, self._room(hardware).usable, strict=True))
        twin = max(own, key=lambda gpu: usable[gpu.name])

        def fit(n: int) -> bool | None:
            costs = self._with(hardware=_with_more(hardware, twin, n))
            return self._fit(self._demand_of(costs, Allowed(costs, costs.target, self._pins)), costs.hardware)

        more = _smallest(min(MOST_MORE_GPUS, MOST_DEVICES - len(hardware.devices)), fit)
        return None if more is None else (more, twin)

    # ---- the model ---------------------------------------------------------------------------------------------

    def finest_quant(self) -> str | None:
        """The finest of `FINE_TO_COARSE` with fewer bytes than now. Only for a model that is known to be read from a
        preset's config.json: other files have their bytes, and a profile does not say where it is from."""
        profile = self._costs.as_stored
        if self._read(profile.quant) != profile:
            return None
        for quant in FINE_TO_COARSE:
            other = self._read(quant)
            if other is not None and other.weight_bytes < self._costs.profile.weight_bytes:
                costs = self._with(profile=other)
                demand = self._demand_of(costs, Allowed(costs, costs.target, self._pins))
                if self._fit(demand, costs.hardware):
                    return quant
        return None

    def _read(self, quant: str | None) -> ModelProfile | None:
        profile = self._costs.profile
        if model_config_preset(profile.model) is None:
            return None
        try:
            return load_profile(profile.model, quant, kv_quant=profile.kv_quant, mla=profile.mla)
        except MoeplanError:
            return None

    # ---- all of them -------------------------------------------------------------------------------------------

    def _with(self, *, profile: ModelProfile | None = None, hardware: Hardware | None = None) -> CostModel:
        costs = self._costs
        return CostModel(
            profile or costs.as_stored,
            hardware or costs.hardware,
            costs.workload,
            safety_margin=costs.safety_margin,
            target=costs.target,
        )

    def _demand_of(self, costs: CostModel, allowed: Allowed, workload: Workload | None = None) -> Demand:
        return demand_of(costs, allowed, whole_layers=self._whole_layers, split=self._split, workload=workload)

    def _room(self, hardware: Hardware, safety_margin: float | None = None) -> Room:
        return Room.of(hardware, self._costs.safety_margin if safety_margin is None else safety_margin)

    def _fit(self, demand: Demand, hardware: Hardware, safety_margin: float | None = None) -> bool | None:
        return fits(demand, self._room(hardware, safety_margin), self._budget)


def _smallest(most: int, fit: Callable[[int], bool | None]) -> int | None:
    """The smallest of 1 to `most` that fits, if all above one that fits do; None where `most` does not, or where so
    many answers are missing that a quarter of what was found might do."""
    if most < 1 or fit(most) is False:
        return None
    low, high, refuted = 0, 1, 0
    while not (answer := fit(high)):
        if high == most:
            return None
        refuted = refuted if answer is None else high
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        answer = fit(middle)
        refuted = middle if answer is False else refuted
        low, high = (low, middle) if answer else (middle, high)
    return high if high <= 4 * (refuted + 1) else None


def _largest(low: int, high: int, fit: Callable[[int], bool | None]) -> int | None:
    """The largest of `low` to `high` that fits, if all below one that fits do; None where `low` does not."""
    below = _smallest(high - low + 1, lambda n: fit(high + 1 - n))
    return None if below is None else high + 1 - below


def _with_more(hardware: Hardware, twin: Device, number: int) -> Hardware:
    """The machine with so many more devices like `twin`, each at the CPU: links say nothing about memory, so only those
    that hold the machine together are kept."""
    link = next(link for link in hardware.links if twin.name in link.between)
    last = max((gpu.name for gpu in hardware.gpus if gpu_type(gpu.name) == gpu_type(twin.name)), key=gpu_index)
    more = [twin.replace(name=counted_on(last, 1 + n)) for n in range(number)]
    names = [gpu.name for gpu in (*hardware.gpus, *more)]
    return hardware.replace(
        devices=(*hardware.devices, *more), links=tuple(link.replace(between=("cpu", name)) for name in names)
    )
