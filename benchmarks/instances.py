"""The instances of the solver's benchmarks: real models on real machines, drawn by a rule, and machines of any size.

Each class of instances was filled by one rule from one grid of models, formats, machines and workloads (`draw`), with
no look at how any solver does on them. `python benchmarks/instances.py` draws them again, with their bytes.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations, product

from cost_models import CostModel
from profiles import (
    Attention,
    Block,
    Experts,
    Hardware,
    Layer,
    Link,
    ModelProfile,
    Workload,
    load_hardware,
    load_profile,
)
from profiles.catalogue import find_cpu, find_gpu
from profiles.read_phrase import cpu_device, gpu_device

WORKLOADS = {
    "default": Workload(),
    "long prompt": Workload(prompt_tokens=8192, generated_tokens=64, prefill_chunk=512),
    "long answer": Workload(prompt_tokens=128, generated_tokens=1024),
    "batch of 16": Workload(batch_size=16),
}
CLASSES = ("fits", "nearly fits", "part on the CPU", "mostly CPU", "mixed cards", "NVLink pairs")
NEARLY = 0.05
"""Share of the experts by which a model that nearly fits is above or below what the GPUs hold."""


@dataclass(frozen=True)
class Instance:
    """One model in one format on one machine under one of `WORKLOADS`; figures are loaded when first asked for."""

    model: str
    quant: str | None
    machine: str
    workload: str

    @property
    def name(self) -> str:
        return " ".join([self.model, *([self.quant] if self.quant else []), "on", f"{self.machine}; {self.workload}"])

    @property
    def profile(self) -> ModelProfile:
        return _profile(self.model, self.quant)

    @cached_property
    def hardware(self) -> Hardware:
        return load_hardware(self.machine)

    @cached_property
    def costs(self) -> CostModel:
        return CostModel(self.profile, self.hardware, WORKLOADS[self.workload])

    @cached_property
    def over(self) -> float:
        """Share of the expert bytes that exceed what the GPUs hold beside all else; below 0 where they leave room.

        Bytes of all GPUs are taken together, and workspaces are left out: a measure of difficulty, not of fitting.
        """
        costs, layers = self.costs, self.profile.layers
        room = sum(costs.usable_bytes(gpu.name) - costs.overhead_bytes(gpu.name) for gpu in self.hardware.gpus)
        room -= sum(block.weight_bytes.gpu for block in (self.profile.embedding, self.profile.head))
        room -= sum(layer.attention.weight_bytes.gpu + costs.kv_bytes(i) for i, layer in enumerate(layers))
        experts = sum(layer.experts.weight_bytes.gpu for layer in layers if layer.experts)
        return 1 - room / experts

    @cached_property
    def label(self) -> str:
        """Its class: what is special about the machine's cards, else how many of the experts exceed them."""
        gpus = self.hardware.gpus
        if len({(gpu.model, gpu.memory_bytes) for gpu in gpus}) > 1:
            return "mixed cards"
        joined = sum("cpu" not in link.between for link in self.hardware.links)
        if 0 < joined < len(gpus) * (len(gpus) - 1) // 2:
            return "NVLink pairs"
        if abs(self.over) <= NEARLY:
            return "nearly fits"
        return "fits" if self.over < 0 else "part on the CPU" if self.over <= 0.5 else "mostly CPU"


@cache
def _profile(model: str, quant: str | None) -> ModelProfile:
    return load_profile(model, quant)


SUITE = (
    Instance("gpt-oss-120b", "q4_k_m", "4xRTX4090,ram=2TB", "long prompt"),
    Instance("qwen3-235b-a22b", "bf16", "8xH100-66GB,ram=2TB", "batch of 16"),
    Instance("deepseek-r1", "q8_0", "8xA100-80GB-SXM,cpu=EPYC-7763,ram=2TB", "long answer"),
    Instance("qwen3-next-80b-a3b-thinking", "q8_0", "1xRTX4090,cpu=EPYC-9654,ram=2TB", "default"),
    Instance("llama-4-scout", "q4_k_m", "2xRTX3090+1xRTX4090,ram=2TB", "long prompt"),
    Instance("deepseek-v2", "bf16", "4xRTXA6000,link=nvlink,ram=2TB", "long answer"),
    Instance("glm-4.5-air", "q8_0", "6xA10,ram=2TB", "default"),
    Instance("kimi-k2-instruct", "q4_k_m", "8xH100,cpu=Xeon-Platinum-8480+,ram=2TB", "batch of 16"),
    Instance("mixtral-8x7b", "bf16", "2xRTX5090,ram=2TB", "default"),
    Instance("deepseek-v2-measured", None, "2xA100-80GB,ram=2TB", "long prompt"),
    Instance("glm-4.5", "q4_k_m", "2xA100-80GB+2xL40-46GB+3xRTX4090,ram=2TB", "long answer"),
    Instance("mixtral-8x22b", "q8_0", "6xRTX3090,link=nvlink,ram=2TB", "batch of 16"),
    Instance("qwen3-30b-a3b", "bf16", "4xRTX4090,cpu=Xeon-Gold-6454S,sockets=2,ram=2TB", "long answer"),
    Instance("glm-4.5-air", "q4_k_m", "3xRTX5090-26GB,ram=2TB", "long prompt"),
    Instance("glm-4.5", "q8_0", "8xL40-46GB,ram=2TB", "default"),
    Instance("gpt-oss-120b", "bf16", "1xRTX4090,cpu=EPYC-9654,ram=2TB", "batch of 16"),
    Instance("qwen3-235b-a22b", "q4_k_m", "1xRTX5090+2xRTX3090,ram=2TB", "long prompt"),
    Instance("deepseek-r1", "q8_0", "8xA100-80GB,link=nvlink,cpu=EPYC-9654,ram=2TB", "long answer"),
    Instance("mixtral-8x22b", "q4_k_m", "4xRTX4090,ram=2TB", "default"),
    Instance("llama-4-scout", "q8_0", "8xRTX4090-16GB,ram=2TB", "batch of 16"),
    Instance("qwen3-next-80b-a3b-thinking", "bf16", "4xRTX4090,cpu=Xeon-Gold-6454S,sockets=2,ram=2TB", "long prompt"),
    Instance("deepseek-v2", "q4_k_m", "2xRTX5090,ram=2TB", "long answer"),
    Instance("kimi-k2-instruct", "q8_0", "2xH100-PCIe+4xRTX6000-Ada,ram=2TB", "batch of 16"),
    Instance("qwen3-30b-a3b", "bf16", "4xRTX3090,link=nvlink,ram=2TB", "default"),
    Instance("mixtral-8x7b", "bf16", "6xA10,ram=2TB", "long prompt"),
    Instance("qwen3-235b-a22b", "q4_k_m", "5xRTX6000-Ada-33GB,ram=2TB", "batch of 16"),
    Instance("deepseek-r1", "q8_0", "8xA100-80GB-SXM,cpu=EPYC-7763,ram=2TB", "default"),
    Instance("deepseek-v2-measured", None, "2xA100-80GB,ram=2TB", "long answer"),
    Instance("kimi-k2-instruct", "q4_k_m", "4xL40-46GB+4xRTX4090+2xA10,cpu=EPYC-9654,ram=2TB", "default"),
    Instance("deepseek-v2", "q8_0", "8xA40,link=nvlink,ram=2TB", "batch of 16"),
    Instance("deepseek-v2-measured", None, "8xL40-46GB,ram=2TB", "long prompt"),
    Instance("mixtral-8x22b", "q8_0", "5xRTX6000-Ada-33GB,ram=2TB", "long answer"),
    Instance("glm-4.5-air", "q4_k_m", "2xRTX5090,ram=2TB", "batch of 16"),
    Instance("mixtral-8x7b", "bf16", "1xRTX4090,cpu=EPYC-9654,ram=2TB", "long prompt"),
    Instance("qwen3-next-80b-a3b-thinking", "q8_0", "2xRTX3090+1xRTX4090,ram=2TB", "long answer"),
    Instance("llama-4-scout", "q4_k_m", "4xRTX3090,link=nvlink,ram=2TB", "default"),
    Instance("glm-4.5", "q8_0", "8xH100,cpu=Xeon-Platinum-8480+,ram=2TB", "batch of 16"),
    Instance("gpt-oss-120b", "q4_k_m", "3xRTX5090-23GB,ram=2TB", "default"),
    Instance("glm-4.5-air", "bf16", "6xA10,ram=2TB", "long answer"),
    Instance("deepseek-r1", "q8_0", "4xRTX4090,cpu=Xeon-Gold-6454S,sockets=2,ram=2TB", "long prompt"),
    Instance("qwen3-30b-a3b", "bf16", "1xRTX5090+2xRTX3090,ram=2TB", "default"),
    Instance("deepseek-v2", "q4_k_m", "6xRTX3090,link=nvlink,ram=2TB", "long prompt"),
    Instance("gpt-oss-120b", "q8_0", "4xRTX4090,ram=2TB", "batch of 16"),
    Instance("qwen3-next-80b-a3b-thinking", "bf16", "8xRTX4090-23GB,ram=2TB", "long answer"),
    Instance("kimi-k2-instruct", "q4_k_m", "8xA100-80GB-SXM,cpu=EPYC-7763,ram=2TB", "batch of 16"),
    Instance("qwen3-235b-a22b", "bf16", "2xA100-80GB,ram=2TB", "long prompt"),
    Instance("glm-4.5", "q8_0", "2xA100-80GB+2xL40-46GB+3xRTX4090,ram=2TB", "default"),
    Instance("llama-4-scout", "q4_k_m", "4xRTX3090,link=nvlink,ram=2TB", "long answer"),
    Instance("deepseek-v2-measured", None, "8xL40-46GB,ram=2TB", "batch of 16"),
    Instance("mixtral-8x22b", "q8_0", "8xRTX4090-21GB,ram=2TB", "long prompt"),
    Instance("mixtral-8x7b", "q4_k_m", "1xRTX4090,cpu=EPYC-9654,ram=2TB", "long answer"),
    Instance("deepseek-r1", "bf16", "8xH100,cpu=Xeon-Platinum-8480+,ram=2TB", "default"),
    Instance("deepseek-v2", "q8_0", "2xH100-PCIe+4xRTX6000-Ada,ram=2TB", "default"),
    Instance("glm-4.5", "q4_k_m", "4xRTXA6000,link=nvlink,ram=2TB", "long prompt"),
    Instance("qwen3-30b-a3b", "bf16", "4xRTX4090,cpu=Xeon-Gold-6454S,sockets=2,ram=2TB", "batch of 16"),
    Instance("llama-4-scout", "q4_k_m", "3xRTX5090-25GB,ram=2TB", "long answer"),
    Instance("qwen3-next-80b-a3b-thinking", "q8_0", "2xRTX5090,ram=2TB", "batch of 16"),
    Instance("mixtral-8x22b", "bf16", "6xA10,ram=2TB", "long answer"),
    Instance("qwen3-235b-a22b", "q8_0", "4xL40-46GB+4xRTX4090+2xA10,cpu=EPYC-9654,ram=2TB", "long prompt"),
    Instance("kimi-k2-instruct", "q4_k_m", "8xA40,link=nvlink,ram=2TB", "default"),
    Instance("glm-4.5-air", "q8_0", "2xA100-80GB,ram=2TB", "default"),
    Instance("deepseek-v2-measured", None, "8xL40-43GB,ram=2TB", "long prompt"),
    Instance("mixtral-8x7b", "q4_k_m", "1xRTX4090,cpu=EPYC-9654,ram=2TB", "batch of 16"),
    Instance("gpt-oss-120b", "bf16", "4xRTX4090,ram=2TB", "long answer"),
    Instance("qwen3-next-80b-a3b-thinking", "q4_k_m", "1xRTX5090+2xRTX3090,ram=2TB", "long prompt"),
    Instance("kimi-k2-instruct", "q8_0", "8xA100-80GB,link=nvlink,cpu=EPYC-9654,ram=2TB", "default"),
)
"""Eleven instances of each class, the classes in turns, so that the first n are balanced too: what `draw` gave."""
STORY = Instance("deepseek-v2-measured", None, "8xL40-46GB", "default")
SMALL = (
    Instance("olmoe-1b-7b", "bf16", "1xRTX3080-10GB,ram=128GB", "default"),
    Instance("olmoe-1b-7b", "q8_0", "2xRTX3080-5GB,ram=128GB", "default"),
    Instance("qwen1.5-moe-a2.7b", "q8_0", "1xRTX3080-10GB,ram=128GB", "default"),
    Instance("deepseek-v2-lite", "q4_k_m", "1xRTX3080-10GB,ram=128GB", "default"),
    Instance("deepseek-v2-lite", "bf16", "1xRTX4090,ram=128GB", "default"),
    Instance("mixtral-8x7b", "q4_k_m", "1xRTX4090,ram=128GB", "default"),
)
"""Chosen by hand beside the suite: 16 to 32 layers and one or two cards, where even a weak model may finish."""


# ---- the draw --------------------------------------------------------------------------------------------------

MODELS = (
    *("deepseek-v2", "deepseek-r1", "qwen3-235b-a22b", "qwen3-30b-a3b", "mixtral-8x22b", "mixtral-8x7b"),
    *("gpt-oss-120b", "glm-4.5", "glm-4.5-air", "kimi-k2-instruct", "llama-4-scout", "qwen3-next-80b-a3b-thinking"),
)
FORMATS = (*product(MODELS, ("bf16", "q8_0", "q4_k_m")), ("deepseek-v2-measured", None))
MACHINES = (
    *("8xL40-46GB", "4xRTX4090", "2xA100-80GB", "1xRTX4090,cpu=EPYC-9654", "8xH100,cpu=Xeon-Platinum-8480+"),
    *("4xRTX4090,cpu=Xeon-Gold-6454S,sockets=2", "8xA100-80GB-SXM,cpu=EPYC-7763", "2xRTX5090", "6xA10"),
    *("2xRTX3090+1xRTX4090", "2xA100-80GB+2xL40-46GB+3xRTX4090", "4xL40-46GB+4xRTX4090+2xA10,cpu=EPYC-9654"),
    *("1xRTX5090+2xRTX3090", "2xH100-PCIe+4xRTX6000-Ada"),
    *("4xRTX3090,link=nvlink", "8xA100-80GB,link=nvlink,cpu=EPYC-9654", "4xRTXA6000,link=nvlink"),
    *("6xRTX3090,link=nvlink", "8xA40,link=nvlink"),
)
SCALED = (("8xL40", 46), ("4xRTX4090", 24), ("8xRTX4090", 24), ("3xRTX5090", 32), ("8xH100", 80), ("5xRTX6000-Ada", 48))
"""Cards whose memory is cut, by whole GB, to just hold a model or just not: (cards, GB they have)."""
RAM_BYTES, RAM = 2 * 10**12, "ram=2TB"
MOST_ROOM = 0.9
"""GPUs with room for almost twice the experts make no question: such an instance is not drawn."""


def grid() -> Iterator[Instance]:
    """Every combination that RAM alone could hold and whose GPUs are not far too large; of the scaled machines those
    on either side of fitting."""
    held = [choice for choice in FORMATS if _profile(*choice).weight_bytes < 0.9 * RAM_BYTES]
    for (model, quant), machine, workload in product(held, MACHINES, WORKLOADS):
        one = Instance(model, quant, f"{machine},{RAM}", workload)
        if one.over >= -MOST_ROOM:
            yield one
    for (model, quant), (cards, most), workload in product(held, SCALED, WORKLOADS):
        sizes = [Instance(model, quant, f"{cards}-{size}GB,{RAM}", workload) for size in range(most * 5 // 8, most + 1)]
        fits = next((i for i, one in enumerate(sizes) if one.over <= 0), 0)
        yield from (one for one in sizes[max(0, fits - 1) : fits + 1] if one.label == "nearly fits")


def draw(each: int = 11, seed: int = 2026) -> list[Instance]:
    """`each` instances of every class, in turns; each time one whose model, format, machine and workload came up least
    so far."""
    rng, used = random.Random(seed), Counter[str]()
    left = list(grid())
    rng.shuffle(left)
    drawn: list[Instance] = []
    for label in [label for _ in range(each) for label in CLASSES]:
        candidates = [one for one in left if one.label == label]
        chosen = min(candidates, key=lambda one: sum(used[part] ** 2 for part in _parts(one)))
        used.update(_parts(chosen))
        left.remove(chosen)
        drawn.append(chosen)
    return drawn


def _parts(one: Instance) -> tuple[str, ...]:
    """What should not come up too often; the size of scaled cards does not make another machine."""
    return (one.model, one.quant or "bf16", re.sub(r"-\d+GB(?=,ram)", "", one.machine), one.workload)


# ---- machines of any size --------------------------------------------------------------------------------------

HOSTS = (("H100-PCIe", "A100-80GB"), ("L40S", "RTXA6000"), ("RTX5090", "RTX4090"), ("RTX3090", "A10"))
"""Four hosts with two kinds of cards each."""
PCIE_BYTES_PER_S, PCIE_S = 25.5e9, 10e-6
NETWORK_BYTES_PER_S, NETWORK_S = 12.5e9, 30e-6
"""Between hosts: 100 Gbit/s, and a latency of its own."""
CLUSTER_RAM_BYTES = 8 * 10**12


def cluster(gpus: int) -> Hardware:
    """`gpus` cards, a multiple of eight: as many of each of eight kinds, over four hosts. PCIe joins the cards of a
    host, the network those of different ones; the CPU is the first host's."""
    assert gpus % 8 == 0, f"{gpus} GPUs are not a multiple of eight"
    slots = [(host, kind) for host, kinds in enumerate(HOSTS) for kind in kinds for _ in range(gpus // 8)]
    host = {"cpu": 0} | {f"cuda:{i}": number for i, (number, _) in enumerate(slots)}
    cards = []
    for i, (_, kind) in enumerate(slots):
        part = find_gpu(kind)
        assert part is not None, kind
        cards.append(gpu_device(f"cuda:{i}", part, part.memory_bytes))

    def link(a: str, b: str) -> Link:
        near = host[a] == host[b]
        rate, latency = (PCIE_BYTES_PER_S, PCIE_S) if near else (NETWORK_BYTES_PER_S, NETWORK_S)
        return Link(between=(a, b), bandwidth_bytes_per_s=rate, latency_s=latency)

    return Hardware(
        name=f"{gpus} GPUs of 8 kinds in 4 hosts",
        source="benchmarks/instances.py",
        devices=(*cards, cpu_device(find_cpu("EPYC-9654"), CLUSTER_RAM_BYTES)),
        links=tuple(link(a, b) for a, b in combinations(host, 2)),
    )


def synthetic(layers: int, machine: Hardware, over: float = 0.1) -> ModelProfile:
    """A model of `layers` layers, about the share `over` of whose experts exceeds the machine's GPUs; less where a
    layer's experts would otherwise not fit on the smallest card, for then nothing but the CPU could take them.

    Three dense layers come first, and every second layer of the rest has experts a fifth larger, as in GGUF files.
    """
    dense, sparse = 3, layers - 3
    attention_bytes, dense_bytes, end_bytes = 120 * 10**6, 400 * 10**6, 900 * 10**6
    usable = [0.9 * gpu.memory_bytes for gpu in machine.gpus]
    room = sum(usable) - 2 * end_bytes - dense * dense_bytes - sparse * attention_bytes
    small = round(min(room / (1 - over) / (sparse * 1.1), 0.8 * min(usable) / 1.2))

    def moe(expert_bytes: int) -> Layer:
        experts = Experts(weight_bytes=expert_bytes, params=expert_bytes, count=128, active=8)
        return Layer(attention=_attention(attention_bytes), experts=experts)

    end = Block(weight_bytes=end_bytes)
    return ModelProfile(
        model=f"synthetic-{layers}",
        source="benchmarks/instances.py",
        hidden_size=7168,
        embedding=end,
        head=end,
        layers=[
            *[Layer(attention=_attention(dense_bytes))] * dense,
            *(moe(small if i % 2 else round(1.2 * small)) for i in range(sparse)),
        ],
    )


def _attention(weight_bytes: int) -> Attention:
    return Attention(weight_bytes=weight_bytes, kv_bytes_per_token=1152)


if __name__ == "__main__":
    for one in draw():
        print(f"{one.label:16} {one.over:+.3f} {one.name}")
