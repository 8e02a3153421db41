"""Profile + hardware + workload -> bytes and seconds of any block on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

from cost_models import memory
from cost_models.constants import GPU_SAFETY_MARGIN
from cost_models.engines import Habits, by_model, engine_of
from cost_models.experts import distinct_experts
from cost_models.held import held
from cost_models.links import Links
from cost_models.roofline import UNTUNED, Work, measured_or, roofline_s
from cost_models.splits import mean_of_slowest
from cost_models.targets import target_memory
from profiles.hardware import Device, Hardware
from profiles.model import Attention, Block, Experts, Layer, ModelProfile
from profiles.workload import Workload


@dataclass(frozen=True)
class Step:
    """One forward step of `tokens` new tokens a sequence with `context` tokens in the cache, done `times` times."""

    tokens: int
    context: float
    times: int = 1


class CostModel:
    """Every figure of docs/model.md for one profile, machine and workload, on demand and remembered.

    `profile` has the bytes that the target holds, `as_stored` those of the files (`cost_models/held.py`). Layers are
    named by index. Equal layers share one computation (`layer_class`): a model has few kinds of layers.
    """

    def __init__(
        self,
        profile: ModelProfile,
        hardware: Hardware,
        workload: Workload | None = None,
        *,
        safety_margin: float = GPU_SAFETY_MARGIN,
        target: str = "torch",
        engine: str | None = None,
    ) -> None:
        """`engine` is the runtime whose speed is meant; by default the one that runs the target's plans."""
        self.as_stored, self.profile = profile, held(profile, target, hardware)
        self.hardware, self.workload = hardware, workload or Workload()
        self.safety_margin, self.target = safety_margin, target
        self.target_memory = target_memory(target)
        self.engine = engine_of(engine or target)
        self.device: Mapping[str, Device] = {device.name: device for device in hardware.devices}
        self._links = Links(hardware)
        # Bound methods cached on the instance: a class-level cache would keep every model alive.
        self._block_s = lru_cache(maxsize=None)(self._compute_block_s)
        self._split_s = lru_cache(maxsize=None)(self._compute_split_s)
        self._hop_s = lru_cache(maxsize=None)(self._compute_hop_s)
        self._experts_from_s = lru_cache(maxsize=None)(self._compute_experts_from_s)
        self._workspace: dict[int, tuple[Block, int]] = {}

    def with_room(self, context_tokens: int, safety_margin: float) -> CostModel:
        """The same for another context and margin. No time depends on them, so what was computed is shared."""
        assert self.layer_class  # reckoned here, so that it is shared too
        other = copy(self)
        other.workload = self.workload.replace(context_tokens=context_tokens)
        other.safety_margin, other._workspace = safety_margin, {}
        return other

    @cached_property
    def layer_class(self) -> tuple[int, ...]:
        return self.profile.layer_class

    def layer(self, index: int) -> Layer:
        return self.profile.layers[index]

    # ---- bytes -------------------------------------------------------------------------------------------------

    def usable_bytes(self, device: str) -> int:
        return memory.usable_bytes(self.device[device], self.safety_margin)

    def pool_usable_bytes(self, pool: str) -> int:
        """What the devices that share the pool of that name may use in all."""
        found = next(one for one in self.hardware.pools if one.name == pool)
        return memory.pool_usable_bytes(found, self.hardware.in_pool(pool), self.safety_margin)

    def weight_bytes(self, block: Block, device: str) -> int:
        return block.weight_bytes.on(self.device[device].kind)

    def expert_bytes(self, experts: Experts, device: str, ids: Sequence[int]) -> int:
        """Bytes of the experts `ids` as stored on `device`, rounded up; per-expert figures are a GPU's, so scaled."""
        stored = experts.weight_bytes.on(self.device[device].kind)
        if len(ids) == experts.count:
            return stored
        if experts.expert_weight_bytes is None:
            return -(-stored * len(ids) // experts.count)
        return -(-sum(experts.expert_weight_bytes[i] for i in ids) * stored // max(1, experts.weight_bytes.gpu))

    def loaded_bytes(self) -> int:
        """Bytes of all weights in RAM while they are loaded: as GPUs are to have them, for what the target unpacks."""
        unpacks_all = self.profile.weight_bytes != self.as_stored.weight_bytes
        found = self.profile if unpacks_all else self.as_stored
        return sum(block.weight_bytes.cpu for block in found.blocks) - found.tied_bytes

    def kv_bytes(self, layer: int) -> int:
        return memory.kv_bytes(self.layer(layer).attention, self.workload)

    def workspace_bytes(self, block: Block) -> int:
        known = self._workspace.get(id(block))
        if known is None:  # blocks take long to compare; one that is kept here keeps its id
            known = block, memory.workspace_bytes(block, self.profile, self.workload, self.target)
            self._workspace[id(block)] = known
        return known[1]

    def overhead_bytes(self, device: str) -> int:
        """What a device that holds anything needs whatever it holds: the part of its context beyond the margin."""
        return memory.context_beyond_margin(self.device[device], self.safety_margin)

    # ---- steps -------------------------------------------------------------------------------------------------

    def prefill_steps(self) -> Iterator[Step]:
        """The prompt in chunks: step(chunk, so far)."""
        done, total = 0, self.workload.prompt_tokens
        while done < total:
            chunk = min(self.workload.prefill_chunk, total - done)
            yield Step(chunk, done)
            done += chunk

    def decode_step(self) -> Step:
        """The mean generated token: step(1, P + N/2)."""
        return Step(1, self.workload.prompt_tokens + self.workload.generated_tokens / 2)

    # ---- seconds -----------------------------------------------------------------------------------------------

    def runs_on(self, device: str) -> str:
        """The device that computes what is on `device`: itself, but where a target streams blocks (accelerate) the
        CPU's are computed on the machine's first GPU. That is the GPU that keeps the buffer, unless it holds nothing:
        times count the first one all the same."""
        if not self.target_memory.streams_blocks or self.device[device].kind != "cpu":
            return device
        gpus = self.hardware.gpus
        return gpus[0].name if gpus else device

    def hop_s(self, a: str, b: str, tokens: int) -> float:
        """Seconds to move the hidden vectors of `tokens` tokens of each sequence from `a` to `b`.

        They are where blocks are computed (`runs_on`), so between the CPU of a target that streams blocks and the first
        GPU nothing moves. The triangle inequality holds all the same.
        """
        return self._hop_s(a, b, tokens)

    def _compute_hop_s(self, a: str, b: str, tokens: int) -> float:
        n_bytes = self.workload.batch_size * tokens * self.profile.hidden_size * self.profile.activation_bytes
        return self._links.hop_s(self.runs_on(a), self.runs_on(b), n_bytes)

    def sync_s(self, device: str) -> float:
        place = self.device[device]
        known = self.habits(place).sync_s if place.sync_s is None else place.sync_s
        return known * (place.calibration or UNTUNED).sync

    def habits(self, device: Device) -> Habits:
        """What the engine reaches on a device of that kind."""
        return self.engine.gpu if device.kind == "gpu" else self.engine.cpu

    def block_s(self, part: str, layer: int, device: str, step: Step) -> float:
        """t(block, device): `part` is embedding, attention, experts or head; `layer` matters for the middle two.

        Where the target streams blocks, t(block, cpu) is the time to copy the block's weights and t(block, first GPU).
        """
        inner = part in ("attention", "experts")
        context = step.context if part == "attention" else 0.0
        return self._block_s(part, self.layer_class[layer] if inner else 0, device, step.tokens, context)

    def experts_from_s(self, layer: int, attention: str, device: str, step: Step) -> float:
        """X_l of docs/model.md with all experts on `device` and the layer's attention on `attention`."""
        return self._experts_from_s(self.layer_class[layer], attention, device, step)

    def _compute_experts_from_s(self, layer: int, attention: str, device: str, step: Step) -> float:
        there = self._experts_there_s(layer, attention, device, step)
        if not self._may_copy(self.layer(layer).experts, attention, device, step.tokens):
            return there
        return min(there, self.copied_experts_s(layer, attention, device, step))

    def copies_experts(self, layer: int, attention: str, device: str, step: Step, *, by_rule: bool = False) -> bool:
        """Whether a step's experts are copied from `device` to the attention's GPU and computed there.

        As planned: where the target keeps a buffer for that, the engine can do it with so many tokens, and it is
        quicker. An engine left to itself goes `by_rule`: by the number of tokens, not by what is quicker.
        """
        experts = self.layer(layer).experts
        if by_rule:
            return self._engine_copies(experts, attention, device, step.tokens)
        if not self._may_copy(experts, attention, device, step.tokens):
            return False
        copied = self.copied_experts_s(layer, attention, device, step)
        return copied < self._experts_there_s(layer, attention, device, step)

    def copied_experts_s(self, layer: int, attention: str, device: str, step: Step) -> float:
        """X_l with the experts copied from `device` to the attention's GPU and computed there."""
        copied = self.copied_s(device, attention, self.weight_bytes(self.block("experts", layer), device))
        return copied + self.block_s("experts", layer, attention, step)

    def copied_s(self, a: str, b: str, n_bytes: int) -> float:
        """Seconds to copy weights from where they are kept to where they are computed, over the link or as fast as
        memory that is not pinned can be read for it."""
        over, rule = self._links.hop_s(a, b, n_bytes), self.engine.copies
        if rule is None or rule.most_bytes_per_s is None or a == b:
            return over
        most = by_model(rule.hosts, self.hardware.cpu.model) or rule.most_bytes_per_s
        return max(over, n_bytes / most)

    def split_experts_s(self, layer: int, attention: str, parts: Mapping[str, Sequence[int]], step: Step) -> float:
        """X_l of a split layer: the mean, over which experts the tokens hit, of the slowest device's time. Ignored:
        that a part which is copied to a GPU takes turns with the part that is there."""
        experts = self.layer(layer).experts
        assert experts is not None
        alike = experts.frequencies is None and experts.expert_weight_bytes is None
        # Of experts that are alike only the numbers matter, so that splits of one shape are computed once.
        frozen = tuple((device, tuple(range(len(ids)) if alike else ids)) for device, ids in parts.items())
        return self._split_s(self.layer_class[layer], attention, frozen, step.tokens)

    def hits_s(self, layer: int, attention: str, device: str, hits: Iterable[float], step: Step) -> list[float]:
        """Seconds of a part of the layer's experts on `device`, seen from `attention`, for each number in `hits` of
        experts that are used (none takes no time); for a target that copies no experts."""
        experts = self.layer(layer).experts
        assert experts is not None
        ids, before = tuple(range(experts.count)), self._handover_s(attention, device, step.tokens)
        seconds = self._hit_experts_s(experts, device, ids, step.tokens)
        return [before + seconds(h) if h > 0 else 0.0 for h in hits]

    def _handover_s(self, attention: str, device: str, tokens: int) -> float:
        if self.runs_on(device) == self.runs_on(attention):
            return 0.0
        hops = self.hop_s(attention, device, tokens) + self.hop_s(device, attention, tokens)
        return self.sync_s(self.runs_on(device)) + hops

    def _experts_there_s(self, layer: int, attention: str, device: str, step: Step) -> float:
        """X_l with the experts computed where they are."""
        return self._handover_s(attention, device, step.tokens) + self.block_s("experts", layer, device, step)

    def _may_copy(self, experts: Experts | None, attention: str, device: str, tokens: int) -> bool:
        """Whether a plan may copy experts on `device` to the attention's GPU to compute them there (llama.cpp).

        All of a layer's bytes are copied, and computing waits for them. Ignored: that llama.cpp since August 2025
        copies only the experts that are used (pull request 15346), which of 512 tokens are nearly all.
        """
        return self.target_memory.stages_experts and self._engine_copies(experts, attention, device, tokens)

    def _engine_copies(self, experts: Experts | None, attention: str, device: str, tokens: int) -> bool:
        rule = self.engine.copies
        if rule is None or experts is None or not self._from_cpu_to_gpu(device, attention):
            return False
        least = rule.from_tokens * (experts.count / experts.active if rule.per_expert else 1)
        return self._all_tokens(tokens) >= least

    def _from_cpu_to_gpu(self, a: str, b: str) -> bool:
        return (self.device[a].kind, self.device[b].kind) == ("cpu", "gpu")

    def _fetch_s(self, device: str, n_bytes: int) -> float:
        """Seconds to copy weights from `device` to where they are computed; over the link, with nothing else to do."""
        return self.copied_s(device, self.runs_on(device), n_bytes)

    def _compute_split_s(
        self, layer: int, attention: str, parts: tuple[tuple[str, tuple[int, ...]], ...], tokens: int
    ) -> float:
        experts = self.layer(layer).experts
        assert experts is not None

        def part_s(device: str, ids: tuple[int, ...]) -> Callable[[float], float]:
            stored = self.expert_bytes(experts, device, ids)
            before = self._handover_s(attention, device, tokens) + self._fetch_s(device, stored)
            there = self._hit_experts_s(experts, device, ids, tokens)
            if not self._may_copy(experts, attention, device, tokens):
                return lambda hit: before + there(hit)
            copied = self.copied_s(device, attention, stored)
            here = self._hit_experts_s(experts, attention, ids, tokens)
            return lambda hit: min(before + there(hit), copied + here(hit))

        seconds = [part_s(device, ids) for device, ids in parts]
        return mean_of_slowest(experts, [ids for _, ids in parts], seconds, self._all_tokens(tokens))

    def _hit_experts_s(
        self, experts: Experts, device: str, ids: tuple[int, ...], tokens: int
    ) -> Callable[[float], float]:
        """Seconds for a number of distinct ones of the experts `ids`, with their share of all the products of the step:
        what does not depend on that number is reckoned once."""
        place, batch = self.device[self.runs_on(device)], self._all_tokens(tokens)
        all_distinct = distinct_experts(experts, batch)
        mean_bytes = self.expert_bytes(experts, place.name, ids) / len(ids)
        whole_work, params = self.work(experts, "experts", place, batch, 0.0), self._params(experts)
        habits = self.habits(place)

        def part(distinct: float) -> float:
            flops, unpacked = distinct / all_distinct * whole_work.flops, distinct * params / experts.count
            touched = distinct * mean_bytes
            here = replace(whole_work, weight_bytes=touched, flops=flops, params=unpacked, experts=len(ids))
            return roofline_s(place, habits, here)

        if not experts.measured_seconds:
            return part

        def whole(all_tokens: int) -> float:
            return roofline_s(place, habits, self.work(experts, "experts", place, all_tokens, 0.0))

        known, measured = whole(batch), measured_or(experts, place, batch, whole)
        return lambda distinct: measured * (part(distinct) / known if known else distinct / all_distinct)

    def _all_tokens(self, tokens: int) -> int:
        return tokens * self.workload.batch_size

    def _params(self, block: Block) -> float:
        """Parameters, for FLOPs. Where a profile gives none: as if every weight had `activation_bytes`."""
        return block.weight_bytes.gpu / self.profile.activation_bytes if block.params is None else block.params

    def _experts_flops(self, experts: Experts, all_tokens: int) -> float:
        """Two operations per parameter of each active expert and token."""
        return 2.0 * self._params(experts) / experts.count * experts.active * all_tokens

    def _compute_block_s(self, part: str, layer: int, device: str, tokens: int, context: float) -> float:
        """t(block, device) of docs/model.md for `tokens` tokens of each sequence."""
        place = self.device[self.runs_on(device)]
        block = self.block(part, layer)

        def formula(all_tokens: int) -> float:
            return roofline_s(place, self.habits(place), self.work(block, part, place, all_tokens, context))

        fetch = self._fetch_s(device, self.weight_bytes(block, device))
        return fetch + measured_or(block, place, self._all_tokens(tokens), formula)

    def block(self, part: str, layer: int) -> Block:
        """The profile's block; asking for the experts of a dense layer is a bug."""
        if part == "embedding":
            return self.profile.embedding
        if part == "head":
            return self.profile.head
        found = self.layer(layer).attention if part == "attention" else self.layer(layer).experts
        assert found is not None
        return found

    def work(self, block: Block, part: str, device: Device, all_tokens: int, context: float) -> Work:
        """What one block asks of a device for `all_tokens` tokens of the whole batch.

        embedding: one row a token is read, nothing is computed. attention: weights and B * context * kv, which a window
        shortens; 2 FLOPs a parameter and token, plus the scores against the cache and half of the chunk itself.
        experts: the expected distinct ones. head: all weights, for the last token of each sequence only, as generation
        needs no other logits.
        """
        batch, weights = self.workload.batch_size, block.weight_bytes.on(device.kind)
        params = self._params(block)
        if part == "embedding":
            return Work("ends", all_tokens * self.profile.hidden_size * self.profile.activation_bytes)
        bits = 8 * weights / params if params else 16.0
        if part == "head":
            return Work("ends", weights, flops=2.0 * params * batch, params=params, bits=bits)
        if isinstance(block, Experts):
            distinct = distinct_experts(block, all_tokens)
            touched = distinct * weights / block.count
            if block.frequencies is not None and block.expert_weight_bytes is not None:
                touched = sum(
                    self.expert_bytes(block, device.name, [i]) * distinct_experts(block, all_tokens, [i])
                    for i in range(block.count)
                )
            flops, unpacked = self._experts_flops(block, all_tokens), distinct * params / block.count
            return Work("experts", touched, flops=flops, params=unpacked, bits=bits, experts=block.count)
        assert isinstance(block, Attention)
        window = block.kv_window_tokens or float("inf")
        cached = min(context, window)
        seen = min(context + all_tokens / batch / 2, window)
        cache_bytes = batch * (cached * block.kv_bytes_per_token + block.state_bytes)
        flops, scores = 2.0 * params * all_tokens, block.flops_per_token_pair * seen * all_tokens
        if all_tokens > batch:
            flops, scores = flops + scores, 0.0
        kind: Literal["latent", "attention"] = "latent" if block.latent else "attention"
        return Work(kind, weights, cache_bytes, flops, scores, params, bits)
