"""Small random models, machines and workloads: seeded, and as hypothesis strategies that shrink."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from profiles import (
    Attention,
    Block,
    Device,
    Experts,
    Hardware,
    Layer,
    Link,
    ModelProfile,
    Placement,
    Workload,
    Workspace,
)
from profiles.placement import LayerPlacement

MB = 10**6


@dataclass(frozen=True)
class Instance:
    profile: ModelProfile
    hardware: Hardware
    workload: Workload

    def __repr__(self) -> str:
        shape = f"{len(self.profile.layers)} layers on {len(self.hardware.gpus)} GPUs"
        return f"Instance({shape}, {self.profile.to_json()}, {self.hardware.to_json()}, {self.workload!r})"


def random_instance(
    rng: random.Random, *, layers: tuple[int, int] = (2, 6), gpus: tuple[int, int] = (1, 3), loose: bool = False
) -> Instance:
    """A model of `layers` (from, to) layers and one of `gpus` GPUs; memory is often tight or too small.

    `loose` gives every device room for everything.
    """
    workload = random_workload(rng)
    profile = random_profile(rng, rng.randint(*layers))
    n_gpus = rng.randint(*gpus)
    whole = sum(max(b.weight_bytes.gpu, b.weight_bytes.cpu) for b in profile.blocks)
    gpu_bytes = 4 * whole + 40_000 * MB if loose else round(whole * rng.uniform(0.15, 1.1) * rng.choice((0.5, 1.0)))
    cpu_bytes = 4 * whole + 40_000 * MB if loose else round(whole * rng.uniform(0.2, 1.8))
    return Instance(profile, random_hardware(rng, n_gpus, max(1, gpu_bytes), max(1, cpu_bytes)), workload)


def random_workload(rng: random.Random) -> Workload:
    prompt = rng.choice((1, 64, 512, 1000))
    return Workload(
        prompt_tokens=prompt,
        generated_tokens=rng.choice((0, 1, 128, 1001)),
        batch_size=rng.choice((1, 1, 2, 40)),
        prefill_chunk=rng.choice((100, 512, 2048)),
        context_tokens=rng.choice((None, 4096)),
    )


def random_profile(rng: random.Random, n_layers: int) -> ModelProfile:
    """One to three kinds of layers, dense ones first, in turns or in any order."""
    hidden = rng.choice((64, 1024, 8192))
    kinds = [_layer(rng, hidden) for _ in range(rng.randint(1, 3))]
    order = rng.choice(("first", "turns", "any"))
    if order == "first":
        cut = rng.randint(0, n_layers)
        chosen = [kinds[0]] * cut + [kinds[-1]] * (n_layers - cut)
    elif order == "turns":
        chosen = [kinds[i % len(kinds)] for i in range(n_layers)]
    else:
        chosen = [rng.choice(kinds) for _ in range(n_layers)]
    embedding = _block(rng, hidden, 50, 900)
    head = _block(rng, hidden, 50, 900)
    tied = rng.random() < 0.3
    return ModelProfile(
        model=f"random-{n_layers}",
        source="drawn at random",
        hidden_size=hidden,
        activation_bytes=rng.choice((2, 4)),
        tied_bytes=min(*embedding["weight_bytes"].values(), *head["weight_bytes"].values()) if tied else 0,
        embedding=Block(**embedding),
        head=Block(**head),
        layers=chosen,
    )


def _layer(rng: random.Random, hidden: int) -> Layer:
    attention = Attention(
        **_block(rng, hidden, 100, 1500),
        kv_bytes_per_token=rng.choice((0, 1152, 200_000)),
        kv_window_tokens=rng.choice((None, None, 128)),
        state_bytes=rng.choice((0, 0, 30 * MB)),
        flops_per_token_pair=rng.choice((0, 100_000)),
    )
    if rng.random() < 0.3:
        return Layer(attention=attention)
    count = rng.choice((2, 4, 8))
    block = _block(rng, hidden, 300, 6000)
    sizes = None
    if rng.random() < 0.3:
        each = block["weight_bytes"]["gpu"] // count
        shift = [rng.randint(0, each // 2) for _ in range(count // 2)]
        sizes = [each + n for n in shift] + [each - n for n in shift]
        block["weight_bytes"] = {**block["weight_bytes"], "gpu": sum(sizes)}
    active = rng.randint(1, count)
    frequencies = None
    if rng.random() < 0.3:
        frequencies = [active / count * (1 + (-1) ** i * rng.uniform(0.0, 0.3)) for i in range(count)]
        frequencies = [min(1.0, f) for f in frequencies]
    return Layer(
        attention=attention,
        experts=Experts(**block, count=count, active=active, expert_weight_bytes=sizes, frequencies=frequencies),
    )


def _block(rng: random.Random, hidden: int, least_mb: int, most_mb: int) -> dict[str, Any]:
    gpu = rng.randint(least_mb, most_mb) * MB + rng.randint(0, 999)
    cpu = gpu if rng.random() < 0.6 else round(gpu * rng.choice((0.5, 1.5, 2.0)))
    block: dict[str, Any] = {"weight_bytes": {"gpu": gpu, "cpu": cpu}}
    if rng.random() < 0.5:
        block["params"] = gpu // rng.choice((1, 2))
    if rng.random() < 0.6:
        block["workspace_bytes"] = Workspace(
            per_token=rng.choice((0, hidden, 400_000)),
            per_context_token=rng.choice((0, 0, 30_000)),
            per_sequence=rng.choice((0, 0, 5 * MB)),
        )
    if rng.random() < 0.25:
        second = rng.uniform(1e-5, 5e-3)
        points = rng.choice(({1: second}, {1: second, 512: second * 20}, {16: second, 64: second * 2}))
        where = rng.choice((["gpu"], ["cpu"], ["gpu", "cpu"], ["cuda:0"], ["Card"]))
        block["measured_seconds"] = dict.fromkeys(where, points)
    return block


def random_hardware(rng: random.Random, n_gpus: int, gpu_bytes: int, cpu_bytes: int) -> Hardware:
    """A star around the CPU with some direct links; cards are all equal, or each its own."""
    equal = rng.random() < 0.5

    def card() -> dict[str, Any]:
        size = 1.0 if equal else rng.uniform(0.4, 1.6)
        return {
            "kind": "gpu",
            "model": rng.choice((None, "Card")),
            "memory_bytes": max(1, round(gpu_bytes * size)),
            "reserved_bytes": rng.choice((0, 0, min(100 * MB, gpu_bytes // 8))),
            "safety_margin": rng.choice((None, None, 0.03)),
            "bandwidth_bytes_per_s": rng.choice((300e9, 864e9, 3350e9)),
            "flops_per_s": rng.choice(({"bf16": 181e12}, {"fp16": 60e12, "fp32": 30e12}, {"int8": 200e12})),
            "bandwidth_efficiency": rng.choice((None, 0.9)),
            "launch_s": rng.choice((None, None, 2e-6)),
            "sync_s": rng.choice((None, 0.0, 1e-3)),
        }

    def host() -> dict[str, float]:
        return {"bandwidth_bytes_per_s": rng.choice((3e9, 25e9)), "latency_s": rng.choice((0.0, 10e-6, 2e-3))}

    first_card, first_link = card(), host()
    cards = [{**(first_card if equal else card()), "name": f"cuda:{i}"} for i in range(n_gpus)]
    links = [{**(first_link if equal else host()), "between": ("cpu", f"cuda:{i}")} for i in range(n_gpus)]
    joined = rng.choice(("no", "all", "some", "some"))
    direct = {"bandwidth_bytes_per_s": rng.choice((1e9, 50e9, 300e9)), "latency_s": rng.choice((1e-6, 10e-6))}
    for a in range(n_gpus):
        for b in range(a + 1, n_gpus):
            if joined == "all" or (joined == "some" and rng.random() < 0.4):
                links.append({**direct, "between": (f"cuda:{a}", f"cuda:{b}")})
    cpu = Device(
        name="cpu",
        kind="cpu",
        memory_bytes=cpu_bytes,
        bandwidth_bytes_per_s=rng.choice((50e9, 200e9, 460e9)),
        flops_per_s={"bf16": rng.choice((1e12, 20e12))},
        safety_margin=rng.choice((None, None, 0.2)),
        sync_s=rng.choice((None, 0.0, 40e-6)),
    )
    devices = [*(Device(**c) for c in cards), cpu]
    return Hardware(
        name=f"random-{n_gpus}",
        devices=devices if rng.random() < 0.8 else devices[::-1],
        links=[Link(**k) for k in links],
    )


def random_placement(rng: random.Random, instance: Instance, *, split: bool = False) -> Placement:
    """Any placement, whether it fits or not; with `split` some experts lie on two devices."""
    names = [device.name for device in instance.hardware.devices]
    layers = []
    for layer in instance.profile.layers:
        experts: dict[str, Any] = {}
        if layer.experts is not None:
            experts = {rng.choice(names): "all"}
            if split and len(names) > 1 and rng.random() < 0.7:
                cut = rng.randint(1, layer.experts.count - 1)
                ids = rng.sample(range(layer.experts.count), layer.experts.count)
                a, b = rng.sample(names, 2)
                experts = {a: sorted(ids[:cut]), b: sorted(ids[cut:])}
        layers.append(LayerPlacement(attention=rng.choice(names), experts=experts))
    return Placement(embedding=rng.choice(names), head=rng.choice(names), layers=layers)


instances = st.randoms(use_true_random=False).map(random_instance)
hardwares = st.randoms(use_true_random=False).map(lambda rng: random_hardware(rng, rng.randint(1, 3), 10**10, 10**11))
