"""Where a run had every block, as far as it says: attention in runs of layers, experts by layer or by share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from profiles.device_names import DEVICE_NAME, of_llama_cpp, on_machine
from profiles.document import one_line, short
from profiles.errors import ProfileError
from profiles.hardware import Hardware
from profiles.model import ModelProfile
from profiles.placement import LayerPlacement, Placement
from profiles.run import Run
from profiles.run_machine import uses_gpus

ExpertsOf = dict[str, str | tuple[int, ...]]


@dataclass
class Placed:
    """A run's placement while it is put together; `notes` say what was assumed."""

    placement: Placement
    notes: list[str] = field(default_factory=list)


def placement_of(run: Run, profile: ModelProfile, hardware: Hardware) -> Placed:
    """Every block's device.

    Attention is laid over the GPUs in runs of layers, in proportion to their memory, as llama.cpp splits layers;
    `gpu_layers` leaves the first ones on the CPU. SGLang's GPUs work as one (tensor parallel), so all is on cuda:0. The
    embedding is on the CPU, as in llama.cpp and KTransformers, but with SGLang and torch beside the first attention.
    Experts that are on GPUs sit with their attention, unless they were placed by hand (`cpu_layers_at` is not
    "first"): then in runs over the GPUs as well.

    Raises ProfileError naming the fact that is missing.
    """
    notes: list[str] = []
    attention = _attention(run, profile, hardware)
    experts = _experts(run, profile, hardware, attention, notes)
    layers = tuple(LayerPlacement(attention=a, experts=e) for a, e in zip(attention, experts, strict=True))
    together = run.engine in ("sglang-kt", "torch")
    whole = run.gpu_layers is None or run.gpu_layers < 0 or run.gpu_layers > len(layers)
    placement = Placement(
        model=run.model,
        hardware=run.machine,
        embedding=attention[0] if together else "cpu",
        head=attention[-1] if whole else "cpu",
        layers=layers,
    )
    return Placed(placement, notes)


def _attention(run: Run, profile: ModelProfile, hardware: Hardware) -> list[str]:
    count = len(profile.layers)
    if not uses_gpus(run) or not hardware.gpus:
        return ["cpu"] * count
    if run.engine == "sglang-kt":
        return ["cuda:0"] * count
    on_cpu = 0 if run.gpu_layers is None or run.gpu_layers < 0 else max(0, count - run.gpu_layers)
    return ["cpu"] * on_cpu + _runs(count - on_cpu, hardware)


def _runs(count: int, hardware: Hardware) -> list[str]:
    """`count` things in a row over the GPUs, in proportion to their memory.

    >>> from profiles.load import load_hardware
    >>> _runs(6, load_hardware("1xRTX5090-32GB+1xRTX3090-16GB"))
    ['cuda:0', 'cuda:0', 'cuda:0', 'cuda:0', 'cuda:1', 'cuda:1']
    """
    total = sum(gpu.memory_bytes for gpu in hardware.gpus)
    spread: list[str] = []
    so_far = 0
    for gpu in hardware.gpus:
        so_far += gpu.memory_bytes
        spread += [gpu.name] * (round(count * so_far / total) - len(spread))
    return spread


def _experts(
    run: Run, profile: ModelProfile, hardware: Hardware, attention: Sequence[str], notes: list[str]
) -> list[ExpertsOf]:
    moe = [i for i, layer in enumerate(profile.layers) if layer.experts is not None]
    if all(device == "cpu" for device in attention):
        where = dict.fromkeys(moe, "cpu")
    elif run.tensor_overrides:
        where = overridden(run.tensor_overrides, moe, attention, hardware)
        where |= {i: "cpu" for i in moe if i < (run.n_cpu_moe or 0)}
    elif run.cpu_layers is not None:
        where = _by_layers(run, moe, run.cpu_layers, hardware, attention, notes)
    elif (first := _first_layers(run)) is not None:
        where = {i: "cpu" if i < first else attention[i] for i in moe}
    elif run.gpu_expert_share is not None:
        return _by_share(run, run.gpu_expert_share, profile, attention, notes)
    else:
        raise ProfileError("cpu_layers: not known where the experts were; give it, n_cpu_moe or gpu_expert_share")
    return [{where[i]: "all"} if i in where else {} for i in range(len(attention))]


def _first_layers(run: Run) -> int | None:
    """llama-bench prints settings that differ from the default: silence means that no experts were kept on the CPU."""
    if run.n_cpu_moe is not None:
        return run.n_cpu_moe
    return 0 if run.engine == "llama.cpp" and run.gpu_layers is not None else None


def _by_layers(
    run: Run, moe: list[int], on_cpu: int, hardware: Hardware, attention: Sequence[str], notes: list[str]
) -> dict[int, str]:
    on_cpu = min(on_cpu, len(moe))
    if run.cpu_layers_at == "first" or on_cpu in (0, len(moe)):
        return {i: "cpu" if n < on_cpu else attention[i] for n, i in enumerate(moe)}
    if run.cpu_layers_at == "unknown":
        notes.append("which layers had their experts on the CPU is not known: the last ones are taken")
    spread = _runs(len(moe) - on_cpu, hardware) + ["cpu"] * on_cpu
    return dict(zip(moe, spread, strict=True))


def _by_share(
    run: Run, share: float, profile: ModelProfile, attention: Sequence[str], notes: list[str]
) -> list[ExpertsOf]:
    """The first of each layer's experts on the GPU; front-loading fills layer after layer instead."""
    counts = [layer.experts.count if layer.experts else 0 for layer in profile.layers]
    if run.expert_strategy not in (None, "uniform", "front-loading") and run.hot_hit_rate is None and 0 < share < 1:
        notes.append(f"strategy {run.expert_strategy}: which experts it chose is not known, any are taken")
    left = round(share * sum(counts))
    placed: list[ExpertsOf] = []
    for count, device in zip(counts, attention, strict=True):
        here = min(count, left) if run.expert_strategy == "front-loading" else round(share * count)
        left -= here
        if count == 0:
            placed.append({})
        elif here in (0, count):
            placed.append({"cpu" if here == 0 else device: "all"})
        else:
            placed.append({device: tuple(range(here)), "cpu": tuple(range(here, count))})
    return placed


def overridden(
    overrides: Sequence[str], moe: Sequence[int], attention: Sequence[str], hardware: Hardware
) -> dict[int, str]:
    """Where -ot puts each layer's experts: the first pattern that is found in a tensor's name decides, as in llama.cpp.

    Raises ProfileError where a pattern is none, a buffer is no device here, or a layer's projections are parted.
    """
    rules = [_rule(text, hardware) for text in overrides]
    where: dict[int, str] = {}
    for i in moe:
        devices = {_device(f"blk.{i}.ffn_{part}_exps.weight", rules, attention[i]) for part in ("gate", "up", "down")}
        if len(devices) > 1:
            raise ProfileError(f"tensor_overrides: layer {i}'s experts are parted by projection; no plan says that")
        where[i] = devices.pop()
    return where


def _device(tensor: str, rules: Sequence[tuple[re.Pattern[str], str]], otherwise: str) -> str:
    return next((device for pattern, device in rules if pattern.search(tensor)), otherwise)


def _rule(text: str, hardware: Hardware) -> tuple[re.Pattern[str], str]:
    pattern, _, buffer = text.rpartition("=")
    try:
        if len(pattern) > 300 or len(re.findall(r"[*+{]", pattern)) > 3 or re.search(r"\)[*+{]", pattern):
            raise re.error("too many repeats, or repeats of groups, which may search forever")
        compiled = re.compile(pattern)
    except re.error as problem:
        raise ProfileError(one_line(f"tensor_overrides: {short(text)}: {problem}; write e.g. exps=CPU")) from None
    plain, known = buffer.strip(), [device.name for device in hardware.devices]
    found = of_llama_cpp(plain.replace(":", ""))
    device = "cpu" if re.match(r"cpu|\w+_host", plain, re.IGNORECASE) else found[0] if found else plain.lower()
    device = on_machine([device], known)[device] if DEVICE_NAME.fullmatch(device) else device
    if device not in known:
        raise ProfileError(one_line(f"tensor_overrides: {short(text)}: {short(buffer)} is no device of this machine"))
    return compiled, device
