r"""A plan as a KTransformers injection rules file (`--optimize_config_path`), and such a file as a plan.

Few rules, each with one exact regex: the layers of a device are folded into one alternation, closed on both sides, so
that layer 1 is never taken for layer 10. What decides memory, and was read in kvcache-ai/ktransformers:

- Experts on a GPU are `KExpertsMarlin` (4 bit), or `KExpertsTorch` where the plan counts 16 bits there, so that its
  bytes hold; on the CPU they are `KExpertsCPU` (as the GGUF file has them). `prefill_op` is
  `KExpertsTorch` throughout because KT demands one, but it stays empty: prompts run on the generate operator too,
  unless layer-wise prefill is on. Hence `per_layer_prefill_intput_threshold: 0` (KT's spelling; its default of 30000
  would load bf16 experts on the GPU for long prompts) and the plan's bytes hold for prefill as for decode.
- KV lives on each self_attn's `generate_device`; linears are 4-bit Marlin except `kv_b_proj` and small gates.
- The engines start on layer 0's self_attn device or on cuda:0, so a plan that begins elsewhere gets the key 0 in
  `transfer_map`; without a model operator (Mixtral) nothing moves and attention has to be on cuda:0.
- The final norm stays with the last layer, since hidden states are not moved for it; `lm_head` moves its own input.

>>> from profiles.placement import Placement
>>> layer = {"attention": "cuda:0", "experts": {"cpu": "all"}}
>>> plan = Placement(architecture="deepseek_v3", embedding="cpu", head="cuda:0", layers=[layer, layer])
>>> print(write(plan, Outline.of_plan(plan)).splitlines()[-4])
- match: {name: '^model\.layers\.(?:[0-1])(?:\.|$)'}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from profiles.document import dump_yaml
from profiles.errors import TargetError
from profiles.placement import Placement, ranges
from runtime_adapter.targets.ktransformers.families import (
    EXPERTS_OPERATOR,
    LINEAR,
    LINEAR_OPERATOR,
    Family,
    Operators,
    family_of,
    operators_of,
)
from runtime_adapter.targets.ktransformers.reader import read, simulated
from runtime_adapter.targets.numbers_regex import alternatives
from runtime_adapter.targets.target import Outline, not_cuda

__all__ = ["obstacles", "read", "simulate", "write"]

Rule = dict[str, Any]
SIXTEEN_BITS = ("bf16", "fp16", "f16")


def write(plan: Placement, outline: Outline, model_path: str | None = None) -> str:
    """The whole rules file for the plan, already checked: resolved as KT would, every module is where the plan says.

    The model's path is not part of it. Raises TargetError, in one line, for what KT cannot do; see `obstacles`.
    """
    for problem in obstacles(plan, outline):
        raise TargetError(problem)
    rules = _rules(plan, family_of(outline.architecture), operators_of(outline.architecture))
    text = _heading(plan, outline) + dump_yaml(list(rules))
    _check_written(text, plan, outline)
    return text


def obstacles(plan: Placement, outline: Outline) -> list[str]:
    """Why no rules file can mean the plan, with the remedies: an architecture that is unknown or missing, split
    experts, attention on the CPU, tokens embedded on a GPU, Mixtral's attention anywhere but on cuda:0."""
    try:
        operators = operators_of(outline.architecture)
    except TargetError as problem:
        return [str(problem)]
    return list(_obstacles(plan, operators))


def _obstacles(plan: Placement, operators: Operators) -> Iterator[str]:
    yield from not_cuda(plan, "ktransformers")
    split = [i for i, layer in enumerate(plan.layers) if len(layer.experts) > 1]
    on_cpu = [i for i, layer in enumerate(plan.layers) if layer.attention == "cpu"]
    away = [i for i, layer in enumerate(plan.layers) if layer.attention != "cuda:0"]
    if split:
        yield (
            f"ktransformers: layers {ranges(split)} split their experts over devices, but a rule moves a layer's "
            "experts whole; solve with granularity 'module'"
        )
    if on_cpu:
        yield (
            f"ktransformers: layers {ranges(on_cpu)} have their attention on cpu, but its attention operators need "
            "a GPU; pin the attention to GPUs or solve with target 'ktransformers'"
        )
    if plan.embedding != "cpu":
        yield (
            f"ktransformers: embedding is on {plan.embedding}, but its engines look tokens up on the CPU; "
            "solve for target ktransformers, or pin the embedding to cpu"
        )
    if operators.model is None and away:
        yield (
            f"ktransformers: layers {ranges(away)} have their attention away from cuda:0, but no operator "
            "moves this model's hidden states between GPUs; pin all attention to cuda:0 (experts may go anywhere)"
        )


def simulate(text: str, outline: Outline, where: str = "rules") -> dict[str, str]:
    """The device of every module that holds tensors, resolved as KT does."""
    _, resolved = simulated(text, outline, where)
    return {name: found.device for name, found in resolved.items() if found.device and found.module.part != "container"}


def _heading(plan: Placement, outline: Outline) -> str:
    """Comment lines that say what the file is for."""
    facts = [
        f"KTransformers rules by moeplan: {plan.model or outline.architecture} on {plan.hardware or 'this machine'}"
    ]
    if plan.prediction is not None:
        facts.append(
            f"predicted: prefill {plan.prediction.prefill_s:.3g} s, decode step {plan.prediction.decode_step_s:.3g} s, "
            f"{plan.prediction.tokens_per_s:.3g} tokens/s"
        )
    for device, held, used, free in plan.device_rows():
        facts.append(f"{device}: {held}" + (f"; {used} used, {free} free" if plan.memory else ""))
    if any(device != "cpu" for layer in plan.layers for device in layer.experts):
        facts.append("experts on a GPU: CUDA graphs must be off (local_chat.py: --use_cuda_graph=False)")
        if _on_gpu(plan.quant) not in ("marlin", *SIXTEEN_BITS):
            facts.append(
                f"the plan counts {plan.quant} there, KExpertsMarlin packs 4 bits: solve with --quant gpu=marlin,cpu=…"
            )
    return "".join(f"# {' '.join(fact.split())}\n" for fact in facts)


def _rules(plan: Placement, family: Family, operators: Operators) -> Iterator[Rule]:
    """All rules, the specific before the general, since the first match wins."""
    homes = {device: layer_regex(layers) for device, layers in _layers_by_home(plan).items()}
    spared = f"(?!{operators.not_quantised}$)" if operators.not_quantised else ""
    yield _rule(r"^model\.embed_tokens$", "default", _on(plan.embedding))
    for device, layers in homes.items():
        yield _rule(rf"{layers}\.", operators.rotary, _on(device), family.paths(family.rotary[0])[0])
    for device, layers in homes.items():
        yield _rule(rf"{layers}\.{spared}", LINEAR_OPERATOR, _linear_on(device), LINEAR)
    yield from _moe_rules(plan, family, operators)
    if operators.attention:
        for device, layers in homes.items():
            yield _rule(rf"{layers}\.self_attn$", operators.attention, _on(device))
    if operators.model:
        yield _rule("^model$", operators.model, _transfers(plan))
    yield _rule(r"^model\.norm$", "default", _on(plan.layers[-1].attention))
    yield _rule("^lm_head$", LINEAR_OPERATOR, _linear_on(plan.head), LINEAR)
    for device, layers in homes.items():
        yield _rule(rf"{layers}(?:\.|$)", "default", _on(device))


def _moe_rules(plan: Placement, family: Family, operators: Operators) -> Iterator[Rule]:
    """The MoE block and its router with their layer, the experts where the plan has them."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, layer in enumerate(plan.layers):
        for device in layer.experts:
            groups[layer.attention, device].append(index)
    for home in dict.fromkeys(home for home, _ in groups):
        layers = layer_regex(i for (at, _), members in groups.items() if at == home for i in members)
        block = rf"{layers}\.{family.block_name}"
        yield _rule(f"{block}$", operators.block, _on(home), family.paths(family.block)[0])
        if family.router and operators.router:
            router = family.paths(family.router)[0]
            yield _rule(rf"{block}\.{family.router_name}$", operators.router, _on(home), router)
    on_gpu = gpu_operator(plan.quant)
    for (home, device), members in groups.items():
        name = rf"{layer_regex(members)}\.{family.block_name}\.experts$"
        yield {**_rule(name, EXPERTS_OPERATOR, _experts_on(device, home, on_gpu)), "recursive": False}


def _layers_by_home(plan: Placement) -> dict[str, list[int]]:
    homes: dict[str, list[int]] = defaultdict(list)
    for index, layer in enumerate(plan.layers):
        homes[layer.attention].append(index)
    return homes


def _rule(name: str, operator: str, kwargs: dict[str, Any], matched_class: str | None = None) -> Rule:
    match = {"name": name} if matched_class is None else {"name": name, "class": matched_class}
    return {"match": match, "replace": {"class": operator, "kwargs": kwargs}}


def _on(device: str) -> dict[str, Any]:
    return {"generate_device": device, "prefill_device": device}


def _linear_on(device: str) -> dict[str, Any]:
    """A linear on one device; Marlin refuses the CPU."""
    generate = "KLinearTorch" if device == "cpu" else "KLinearMarlin"
    return {**_on(device), "generate_op": generate, "prefill_op": "KLinearTorch"}


def gpu_operator(quant: str | None) -> str:
    """The operator of experts on a GPU: 16-bit ones where the plan counts 16 bits there, else 4-bit ones.

    >>> gpu_operator("gpu=marlin,cpu=q8_0"), gpu_operator("bf16")
    ('KExpertsMarlin', 'KExpertsTorch')
    """
    return "KExpertsTorch" if _on_gpu(quant) in SIXTEEN_BITS else "KExpertsMarlin"


def _on_gpu(quant: str | None) -> str:
    """The weight format on GPUs; KT's usual one where a plan says none."""
    return (quant or "marlin").removeprefix("gpu=").partition(",")[0]


def _experts_on(device: str, home: str, on_gpu: str) -> dict[str, Any]:
    """A layer's experts. CPU experts name the GPU that their result goes to; GPU experts return it to the caller's."""
    if device == "cpu":
        generate = {"generate_device": "cpu", "generate_op": "KExpertsCPU", "out_device": home}
    else:
        generate = {"generate_device": device, "generate_op": on_gpu}
    return {"prefill_device": home if device == "cpu" else device, "prefill_op": "KExpertsTorch", **generate}


def _transfers(plan: Placement) -> dict[str, Any]:
    """The model operator's arguments: layer-wise prefill off, and the layers before which hidden states move."""
    transfers: dict[int, str] = {}
    here = "cuda:0"
    for index, layer in enumerate(plan.layers):
        if layer.attention != here:
            transfers[index] = here = layer.attention
    off = {"per_layer_prefill_intput_threshold": 0}
    return {**off, "transfer_map": transfers} if transfers else off


def layer_regex(layers: Iterable[int]) -> str:
    r"""A regex for the names of exactly these decoder layers; the caller closes it with what may follow.

    >>> layer_regex([0, 1, 2, 10, 11, 12, 14, 20])
    '^model\\.layers\\.(?:[0-2]|1[0-24]|20)'
    """
    return rf"^model\.layers\.(?:{alternatives(layers)})"


def _check_written(text: str, plan: Placement, outline: Outline) -> None:
    """Read our own text back as KT would; a difference is a bug of ours, and must not reach a machine."""
    found = read(text, outline, "the rules written")
    wanted = [(layer.attention, list(layer.experts)) for layer in plan.layers]
    if [(layer.attention, list(layer.experts)) for layer in found.layers] != wanted or found.head != plan.head:
        raise TargetError("ktransformers: the rules written do not mean the plan; this is a bug in moeplan, report it")
