"""A second opinion on bytes and seconds, written from the formulas alone, and brute force on top of it.

It imports the nouns and the default figures, no cost model and no solver. Experts are whole here: a layer's experts are
on one device. Placements are the public `Placement`, or `Spots`, the same in device indices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from itertools import combinations
from typing import Any

from cost_models.constants import CPU_SAFETY_MARGIN
from cost_models.engines import Habits, engine_of
from profiles import Block, Device, Hardware, LayerPlacement, Link, ModelProfile, Placement, Workload
from profiles.model import Workspace

OBJECTIVES = ("request", "decode", "prefill", "throughput")
KEEPS_A_LATENT = re.compile("deepseek_v(2|3|32)|kimi_(k2|linear)|glm4_moe_lite|glm_moe_dsa|longcat_flash")
"""Architectures whose attention has a compressed cache (MLA)."""


@dataclass(frozen=True)
class Spots:
    """Device index of every block; `experts` is None where the layer is dense."""

    embedding: int
    head: int
    attention: tuple[int, ...]
    experts: tuple[int | None, ...]

    def placement(self, names: tuple[str, ...]) -> Placement:
        layers = [
            LayerPlacement(attention=names[a], experts={} if d is None else {names[d]: "all"})
            for a, d in zip(self.attention, self.experts, strict=True)
        ]
        return Placement(embedding=names[self.embedding], head=names[self.head], layers=layers)


def simple_paths(hardware: Hardware, a: str, b: str) -> Iterator[tuple[Link, ...]]:
    """Every way from a to b that visits no device twice; parallel links make ways of their own."""

    def walk(here: str, seen: tuple[str, ...], path: tuple[Link, ...]) -> Iterator[tuple[Link, ...]]:
        if here == b:
            yield path
            return
        for link in hardware.links:
            if here in link.between:
                there = link.between[1] if link.between[0] == here else link.between[0]
                if there not in seen:
                    yield from walk(there, (*seen, there), (*path, link))

    return walk(a, (a,), ())


def hop_seconds(hardware: Hardware, a: str, b: str, n_bytes: float) -> float:
    """Sum of latencies plus bytes over the slowest bandwidth, on the cheapest of all ways."""
    if a == b:
        return 0.0
    return min(
        math.fsum(link.latency_s for link in path) + n_bytes / min(link.bandwidth_bytes_per_s for link in path)
        for path in simple_paths(hardware, a, b)
    )


class Oracle:
    """Bytes and seconds of any placement with whole experts."""

    def __init__(
        self,
        profile: ModelProfile,
        hardware: Hardware,
        workload: Workload,
        safety_margin: float = 0.10,
        engine: str = "torch",
    ) -> None:
        self.profile, self.hardware, self.workload, self.margin = profile, hardware, workload, safety_margin
        self.names = tuple(device.name for device in hardware.devices)
        self.engine = engine_of(engine)
        self.hop = cache(self._hop)
        self.seconds = cache(self._seconds)

    # ---- section 3: bytes ----

    def usable(self, name: str) -> int:
        device = self.hardware.device(name)
        if device.budget_bytes is not None:
            return device.budget_bytes
        margin = device.safety_margin
        if margin is None:
            margin = CPU_SAFETY_MARGIN if device.kind == "cpu" else self.margin
        return max(0, math.floor(device.memory_bytes * (1 - Fraction(str(margin)))) - device.reserved_bytes)

    def cached_tokens(self, layer: int) -> int:
        """The most tokens of a sequence in a layer's cache, over all steps of a chunk or one generated token."""
        window, work = self.profile.layers[layer].attention.kv_window_tokens, self.workload
        if window is None:
            return work.context_tokens
        before_decoding = work.context_tokens - work.generated_tokens
        while_reading = min(before_decoding, window - 1 + work.prefill_chunk)
        while_decoding = min(work.context_tokens, window - 1 + 1)
        return max(while_reading, while_decoding)

    def kv(self, layer: int) -> int:
        attention = self.profile.layers[layer].attention
        tokens = self.cached_tokens(layer)
        return self.workload.batch_size * (tokens * attention.kv_bytes_per_token + attention.state_bytes)

    def workspace(self, part: str, layer: int) -> int:
        """Bytes of the transient of one block for one chunk of the prompt of every sequence."""
        block, work, hidden = self.block(part, layer), self.workload, self.profile.hidden_size
        need = block.workspace_bytes
        if need is None:
            vector = hidden * self.profile.activation_bytes
            if part == "embedding":
                need = Workspace(per_token=vector)
            elif part == "attention":
                need = Workspace(per_token=8 * vector)
            elif part == "experts":
                experts = self.profile.layers[layer].experts
                assert experts is not None
                need = Workspace(per_token=12 * experts.active * hidden + 2 * vector)
            else:
                vocabulary = max(1, block.weight_bytes.gpu // vector)
                need = Workspace(per_token=2 * vector, per_sequence=6 * vocabulary)
        chunk, context = work.prefill_chunk, work.context_tokens
        seen = self.cached_tokens(layer) if part == "attention" else context
        largest = 0
        for moment in (need, *need.other_moments):
            if moment.after_first_chunk and context <= chunk + work.generated_tokens:
                continue
            each = chunk * moment.per_token + seen * moment.per_context_token + moment.per_sequence
            each += chunk * context * moment.per_token_pair + chunk * seen * moment.per_window_pair
            largest = max(largest, each)
        return largest * work.batch_size

    def used(self, placement: Placement) -> dict[str, int]:
        """Weights + KV + the largest transient, per device."""
        stays = dict.fromkeys(self.names, 0)
        largest = dict.fromkeys(self.names, 0)
        for part, layer, name in self.places(placement):
            device = self.hardware.device(name)
            stays[name] += self.block(part, layer).weight_bytes.on(device.kind)
            stays[name] += self.kv(layer) if part == "attention" else 0
            largest[name] = max(largest[name], self.workspace(part, layer))
        if placement.embedding == placement.head:
            stays[placement.head] -= self.profile.tied_bytes
        return {name: stays[name] + largest[name] for name in self.names}

    def fits(self, placement: Placement) -> bool:
        return all(n <= self.usable(name) for name, n in self.used(placement).items())

    def places(self, placement: Placement) -> Iterator[tuple[str, int, str]]:
        """(part, layer, device) of every block, in the order of a token's way."""
        yield "embedding", 0, placement.embedding
        for i, layer in enumerate(placement.layers):
            yield "attention", i, layer.attention
            for name in layer.experts:
                yield "experts", i, name
        yield "head", 0, placement.head

    def block(self, part: str, layer: int) -> Block:
        if part == "embedding":
            return self.profile.embedding
        if part == "head":
            return self.profile.head
        found = getattr(self.profile.layers[layer], part)
        assert found is not None
        return found  # type: ignore[no-any-return]

    # ---- section 4: seconds ----

    def _hop(self, a: str, b: str, tokens: int) -> float:
        n_bytes = self.workload.batch_size * tokens * self.profile.hidden_size * self.profile.activation_bytes
        return hop_seconds(self.hardware, a, b, n_bytes)

    def sync(self, name: str) -> float:
        device = self.hardware.device(name)
        factor = device.calibration.sync if device.calibration else 1.0
        return factor * (self.habits(device).sync_s if device.sync_s is None else device.sync_s)

    def habits(self, device: Device) -> Habits:
        return self.engine.cpu if device.kind == "cpu" else self.engine.gpu

    def _seconds(self, part: str, layer: int, name: str, tokens: int, context: float) -> float:
        """t(block, device) for a step of `tokens` tokens a sequence: measured if it was, else the formula."""
        device, block = self.hardware.device(name), self.block(part, layer)
        batch = self.workload.batch_size
        table = block.measured_seconds or {}
        for key in (device.name, device.model, device.kind):
            if key is not None and key in table:
                return self._measured(table[key], part, layer, device, tokens * batch, context)
        return self._formula(part, layer, device, tokens * batch, context)

    def _measured(
        self, points: dict[int, float], part: str, layer: int, device: Device, tokens: int, context: float
    ) -> float:
        if tokens in points:
            return points[tokens]
        below = [n for n in points if n < tokens]
        above = [n for n in points if n > tokens]
        if below and above:
            low, high = max(below), min(above)
            return (points[low] * (high - tokens) + points[high] * (tokens - low)) / (high - low)
        end = min(above) if above else max(below)
        growth = self._formula(part, layer, device, tokens, context) / self._formula(part, layer, device, end, context)
        return points[end] * growth

    def _formula(self, part: str, layer: int, device: Device, tokens: int, context: float) -> float:
        """launch + the larger of reading time and computing time; `tokens` of the whole batch."""
        return self._roofline(device, part, **self._work(part, layer, device, tokens, context))

    def _roofline(
        self,
        device: Device,
        part: str,
        touched: float,
        flops: float,
        cached: float = 0.0,
        scores: float = 0.0,
        params: float = 0.0,
        bits: float = 16.0,
        experts: int = 0,
    ) -> float:
        peak = next((device.flops_per_s[k] for k in ("bf16", "fp16", "fp32") if k in device.flops_per_s), None)
        peak = max(device.flops_per_s.values()) if peak is None else peak
        habits, bandwidth, sockets = self.habits(device), device.bandwidth_bytes_per_s, device.sockets or 1
        socket = bandwidth / sockets
        if habits.knee_bytes_per_s is not None:
            socket = min(socket, habits.knee_bytes_per_s) * max(1.0, socket / habits.knee_bytes_per_s) ** (
                habits.bandwidth_exponent
            )
        read = habits.bandwidth_efficiency * socket * sockets**habits.sockets_exponent
        if device.bandwidth_efficiency is not None:
            read = bandwidth * device.bandwidth_efficiency
        run = peak * habits.flops_efficiency
        named = [rule.value for rule in habits.products if re.search(rule.model, device.model or "", re.IGNORECASE)]
        run *= named[0] if named else 1.0
        if habits.flops_per_cycle is not None and device.cores is not None:
            clock = 3e9 if device.clock_hz is None else device.clock_hz
            run = (
                habits.flops_per_cycle * clock * 32 ** (1 - habits.cores_exponent) * device.cores**habits.cores_exponent
            )
        if device.flops_efficiency is not None:
            run = peak * device.flops_efficiency
        latent = KEEPS_A_LATENT.fullmatch(self.profile.architecture or "") is not None
        rate = habits.latent_scores_per_s if part == "attention" and latent else habits.scores_per_s
        waiting = cached / read
        if habits.cache_efficiency is not None:
            waiting = cached / (bandwidth * habits.cache_efficiency)
        if rate is not None and scores:
            waiting = scores / rate
        unpack = [rule.params_per_core_s for rule in habits.unpacking if bits < rule.below_bits]
        slowest = params / (min(unpack) * device.cores) if unpack and device.cores else 0.0
        launch = getattr(habits.launch_s, {"embedding": "ends", "head": "ends"}.get(part, part))
        if part == "attention" and latent:
            launch = habits.launch_s.latent
        launch += experts * habits.launch_s.each_expert
        if device.launch_s is not None:
            launch = device.launch_s
        if (tuned := device.calibration) is not None:
            launch, read, run = launch * tuned.launch, read * tuned.bandwidth, run * tuned.flops
            waiting, slowest = waiting / tuned.cache, slowest / tuned.bandwidth
        return float(launch + max(touched / read, flops / run, slowest) + waiting)

    def _work(self, part: str, layer: int, device: Device, tokens: int, context: float) -> dict[str, Any]:
        block, batch, profile = self.block(part, layer), self.workload.batch_size, self.profile
        weights = block.weight_bytes.on(device.kind)
        params = block.weight_bytes.gpu / profile.activation_bytes if block.params is None else block.params
        bits = 8 * weights / params if params else 16
        if part == "embedding":
            return {"touched": tokens * profile.hidden_size * profile.activation_bytes, "flops": 0.0}
        if part == "head":
            return {"touched": weights, "flops": 2 * params * batch, "params": params, "bits": bits}
        if part == "attention":
            attention = profile.layers[layer].attention
            window = math.inf if attention.kv_window_tokens is None else attention.kv_window_tokens
            cached = min(context, window) * attention.kv_bytes_per_token + attention.state_bytes
            pairs = min(context + tokens / batch / 2, window) * attention.flops_per_token_pair
            alone = tokens <= batch  # scaling from a measured count may go below a token a sequence
            return {
                "touched": weights,
                "flops": tokens * (2 * params + (0 if alone else pairs)),
                "scores": tokens * pairs if alone else 0.0,
                "cached": batch * cached,
                "params": params,
                "bits": bits,
            }
        experts = profile.layers[layer].experts
        assert experts is not None
        used = experts.frequencies or [experts.active / experts.count] * experts.count
        hit = [1 - (1 - f) ** tokens for f in used]
        sizes = [Fraction(weights, experts.count)] * experts.count
        if experts.expert_weight_bytes is not None and experts.frequencies is not None:
            scale = Fraction(weights, experts.weight_bytes.gpu)
            sizes = [Fraction(math.ceil(n * scale)) for n in experts.expert_weight_bytes]
        return {
            "touched": math.fsum(p * float(n) for p, n in zip(hit, sizes, strict=True)),
            "flops": 2 * params * experts.active / experts.count * tokens,
            "params": math.fsum(hit) * params / experts.count,
            "bits": bits,
            "experts": experts.count,
        }

    def outside(self, attention: str, experts: str, tokens: int) -> float:
        """What X_l pays beside the experts' own time when they are elsewhere."""
        if attention == experts:
            return 0.0
        return self.sync(experts) + self.hop(attention, experts, tokens) + self.hop(experts, attention, tokens)

    def mean_of_slowest(self, layer: int, attention: str, parts: dict[str, tuple[int, ...]]) -> float:
        """X_l of a split layer for one token whose top-k is any set with equal chance: counted out, set by set."""
        experts = self.profile.layers[layer].experts
        assert experts is not None
        assert experts.frequencies is None
        assert not experts.measured_seconds
        params = experts.weight_bytes.gpu / self.profile.activation_bytes if experts.params is None else experts.params
        slowest = []
        for used in combinations(range(experts.count), experts.active):
            times = [0.0]
            for name, ids in parts.items():
                device, hits = self.hardware.device(name), len(set(used) & set(ids))
                share = Fraction(len(ids), experts.count)
                if experts.expert_weight_bytes is not None:
                    share = Fraction(sum(experts.expert_weight_bytes[i] for i in ids), experts.weight_bytes.gpu)
                stored = math.ceil(share * experts.weight_bytes.on(device.kind))
                if hits:
                    work = self._roofline(
                        device,
                        "experts",
                        touched=hits * stored / len(ids),
                        flops=2 * params / experts.count * hits,
                        params=params / experts.count * hits,
                        bits=8 * experts.weight_bytes.on(device.kind) / params,
                        experts=len(ids),
                    )
                    times.append(self.outside(attention, name, 1) + work)
            slowest.append(max(times))
        return math.fsum(slowest) / len(slowest)

    def step(self, placement: Placement, tokens: int, context: float) -> float:
        seconds, here = self.seconds("embedding", 0, placement.embedding, tokens, 0.0), placement.embedding
        for i, layer in enumerate(placement.layers):
            seconds += self.hop(here, layer.attention, tokens)
            seconds += self.seconds("attention", i, layer.attention, tokens, context)
            seconds += max(
                (
                    self.outside(layer.attention, name, tokens) + self.seconds("experts", i, name, tokens, 0.0)
                    for name in layer.experts
                ),
                default=0.0,
            )
            here = layer.attention
        seconds += self.hop(here, placement.head, tokens)
        return seconds + self.seconds("head", 0, placement.head, tokens, 0.0)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(tokens, tokens before) of every chunk of the prompt."""
        work = self.workload
        for start in range(0, work.prompt_tokens, work.prefill_chunk):
            yield min(work.prefill_chunk, work.prompt_tokens - start), start

    @property
    def mean_context(self) -> float:
        return self.workload.prompt_tokens + self.workload.generated_tokens / 2

    def prefill(self, placement: Placement) -> float:
        return math.fsum(self.step(placement, tokens, before) for tokens, before in self.chunks())

    def decode_step(self, placement: Placement) -> float:
        return self.step(placement, 1, self.mean_context)

    def busiest(self, placement: Placement) -> float:
        busy = dict.fromkeys(self.names, 0.0)
        for part, layer, name in self.places(placement):
            busy[name] += self.seconds(part, layer, name, 1, self.mean_context if part == "attention" else 0.0)
        return max(busy.values())

    def objective(self, placement: Placement, objective: str) -> float:
        if objective == "prefill":
            return self.prefill(placement)
        if objective == "decode":
            return self.decode_step(placement)
        if objective == "throughput":
            return self.busiest(placement) / self.workload.batch_size
        assert objective == "request"
        return self.prefill(placement) + self.workload.generated_tokens * self.decode_step(placement)


class BruteForce:
    """Every placement of a small instance, in order of blocks, cut off only where memory or the best known forbids.

    `experts_with_attention` is granularity `layer`. `allowed` maps (part, layer) to device indices where not all;
    `extra_bytes` are added to what a device can hold.
    """

    def __init__(
        self,
        oracle: Oracle,
        objective: str,
        *,
        experts_with_attention: bool = False,
        allowed: dict[tuple[str, int], set[int]] | None = None,
        extra_bytes: dict[str, int] | None = None,
    ) -> None:
        self.oracle, self.objective = oracle, objective
        self.whole, self.allowed = experts_with_attention, allowed or {}
        self.devices = range(len(oracle.names))
        self.usable = [oracle.usable(name) + (extra_bytes or {}).get(name, 0) for name in oracle.names]

    @cached_property
    def steps(self) -> list[tuple[int, float, float]]:
        """(tokens, context, weight) of the steps that add up to the objective."""
        work, decode = self.oracle.workload, (1, self.oracle.mean_context)
        prompt = [(tokens, float(before), 1.0) for tokens, before in self.oracle.chunks()]
        if self.objective == "prefill":
            return prompt
        if self.objective == "request":
            return [*prompt, (*decode, float(work.generated_tokens))]
        return [(*decode, 1.0 if self.objective == "decode" else 1 / work.batch_size)]

    @cached_property
    def time(self) -> dict[tuple[str, int, int], float]:
        """Seconds of each block on each device, over all steps."""
        oracle, found = self.oracle, {}
        for part, layer in self.blocks:
            for d in self.devices:
                found[part, layer, d] = math.fsum(
                    w * oracle.seconds(part, layer, oracle.names[d], t, c if part == "attention" else 0.0)
                    for t, c, w in self.steps
                )
        return found

    @cached_property
    def hop(self) -> list[list[float]]:
        names = self.oracle.names
        return [[math.fsum(w * self.oracle.hop(a, b, t) for t, _, w in self.steps) for b in names] for a in names]

    @cached_property
    def outside(self) -> list[list[float]]:
        names = self.oracle.names
        return [[math.fsum(w * self.oracle.outside(a, b, t) for t, _, w in self.steps) for b in names] for a in names]

    @cached_property
    def stays(self) -> dict[tuple[str, int, int], int]:
        oracle, found = self.oracle, {}
        for part, layer in self.blocks:
            for d in self.devices:
                kind = oracle.hardware.devices[d].kind
                kv = oracle.kv(layer) if part == "attention" else 0
                found[part, layer, d] = oracle.block(part, layer).weight_bytes.on(kind) + kv
        return found

    @cached_property
    def blocks(self) -> list[tuple[str, int]]:
        """Embedding and head first (their tied bytes are then known), then the layers in order."""
        inner = [
            (part, i)
            for i, layer in enumerate(self.oracle.profile.layers)
            for part in (("attention",) if layer.experts is None else ("attention", "experts"))
        ]
        return [("embedding", 0), ("head", 0), *inner]

    def best(self) -> tuple[float, Spots] | None:
        """The least objective of all placements that fit, with one that attains it; None when none fits."""
        stack = len(self.blocks)
        n_layers = len(self.oracle.profile.layers)
        stays, largest, busy = [0] * len(self.devices), [0] * len(self.devices), [0.0] * len(self.devices)
        chosen: list[int] = []
        best: tuple[float, Spots] | None = None
        throughput = self.objective == "throughput"
        workspace = {key: self.oracle.workspace(*key) for key in self.blocks}

        def finish(seconds: float, last: int) -> None:
            nonlocal best
            total = max(busy) if throughput else seconds + self.hop[last][chosen[1]]
            if best is None or total < best[0]:
                attention: list[int] = [0] * n_layers
                experts: list[int | None] = [None] * n_layers
                for (part, layer), d in zip(self.blocks[2:], chosen[2:], strict=True):
                    if part == "attention":
                        attention[layer] = d
                    else:
                        experts[layer] = d
                best = total, Spots(chosen[0], chosen[1], tuple(attention), tuple(experts))

        def extend(k: int, seconds: float, last: int) -> None:
            if best is not None and (max(busy) if throughput else seconds) >= best[0]:
                return
            if k == stack:
                finish(seconds, last)
                return
            part, layer = key = self.blocks[k]
            for d in self.devices:
                if d not in self.allowed.get(key, self.devices):
                    continue
                if self.whole and part == "experts" and d != last:
                    continue
                tied = self.oracle.profile.tied_bytes if part == "head" and d == chosen[0] else 0
                old = stays[d], largest[d], busy[d]
                stays[d] += self.stays[part, layer, d] - tied
                largest[d] = max(largest[d], workspace[key])
                busy[d] += self.time[part, layer, d]
                if stays[d] + largest[d] <= self.usable[d]:
                    cost, after = self.time[part, layer, d], last
                    if part == "attention":
                        cost += self.hop[chosen[0] if layer == 0 else last][d]
                        after = d
                    elif part == "experts":
                        cost += self.outside[last][d]
                    chosen.append(d)
                    extend(k + 1, seconds + cost, after)
                    chosen.pop()
                stays[d], largest[d], busy[d] = old

        extend(0, 0.0, -1)
        return best
