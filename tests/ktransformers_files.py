"""KTransformers rules files in the manner of those it ships (kvcache-ai/ktransformers, optimize_rules/): their traits,
in our own words, so that tests know what each part means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

OPERATORS = "ktransformers.operators"
MODELS = "ktransformers.models"
LINEAR = f"{OPERATORS}.linear.KTransformersLinear"
EXPERTS = f"{OPERATORS}.experts.KTransformersExperts"


def rule(operator: str = "default", *, name: str = "", of: str = "", recursive: bool = True, **kwargs: Any) -> Any:
    """One rule: `name` and `of` (a class) are what it matches."""
    match = {key: value for key, value in (("name", name), ("class", of)) if value}
    made: dict[str, Any] = {"match": match, "replace": {"class": operator}}
    if kwargs:
        made["replace"]["kwargs"] = kwargs
    return made if recursive else {**made, "recursive": False}


def on(device: str, prefill: str | None = None) -> dict[str, str]:
    return {"generate_device": device, "prefill_device": prefill or device}


def text_of(rules: Sequence[Any]) -> str:
    """Block style, so that each rule begins with a dash at the start of its line."""
    return yaml.safe_dump(list(rules), sort_keys=False)


def cpu_experts(name: str, out: str, operator: str = EXPERTS, **more: Any) -> Any:
    """Experts computed on the CPU, answering to the GPU `out`."""
    kwargs = {"prefill_device": out, "prefill_op": "KExpertsTorch", "generate_op": "KExpertsCPU", "out_device": out}
    return rule(operator, name=name, recursive=False, **{**kwargs, "generate_device": "cpu", **more})


def gpu_experts(name: str, device: str, operator: str = "KExpertsMarlin") -> Any:
    """Experts on a GPU, with as few words as the shipped Marlin file has for them."""
    return rule(EXPERTS, name=name, recursive=False, generate_device=device, generate_op=operator)


def by_gpu(
    layers: Mapping[str, str],
    transfers: Mapping[int, str],
    *,
    modeling: str = "modeling_deepseek_v3",
    prefix: str = "DeepseekV3",
    experts: Sequence[Any] = (),
    head: str,
    model: str = f"{OPERATORS}.models.KDeepseekV2Model",
    embedding: str = "cpu",
) -> str:
    """A file for several GPUs: `layers` maps a device to the regex of its layers, `experts` are the experts' rules.

    The last GPU's default rule takes the final norm along, as in the shipped files.
    """
    starts = {device: rf"^model\.layers\.{regex}\." for device, regex in layers.items()}
    own = f"{MODELS}.{modeling}.{prefix}"
    rules = [rule(name=r"^model.embed_tokens", **on(embedding))]
    rules += [
        rule(f"{OPERATORS}.RoPE.YarnRotaryEmbeddingV3", name=start, of=f"{own}RotaryEmbedding", **on(device))
        for device, start in starts.items()
    ]
    for device, start in starts.items():
        ops = {"generate_op": "KLinearMarlin", "prefill_op": "KLinearTorch"}
        spared = rf"{start}(?!self_attn\.kv_b_proj).*$"
        rules.append(rule(LINEAR, name=spared, of="torch.nn.Linear", **on(device), **ops))
    for device, start in starts.items():
        block = f"{OPERATORS}.experts.KDeepseekV3MoE"
        rules.append(rule(block, name=f"{start}mlp$", of=f"{own}MoE", **on(device)))
    rules += experts or [cpu_experts(rf"{start}mlp\.experts$", device) for device, start in starts.items()]
    for device, start in starts.items():
        rules.append(rule(f"{OPERATORS}.attention.KDeepseekV2Attention", name=f"{start}self_attn$", **on(device)))
    rules.append(rule(model, name="^model$", per_layer_prefill_intput_threshold=0, transfer_map=dict(transfers)))
    rules.append(rule(LINEAR, name="^lm_head", of="torch.nn.Linear", **on(head), generate_op="KLinearMarlin"))
    *before, (last, start) = starts.items()
    rules += [rule(name=start, **on(device)) for device, start in before]
    rules.append(rule(name=rf"({start})|(^model.norm)", **on(last)))
    return text_of(rules)


def on_one_gpu(
    modeling: str,
    prefix: str,
    *,
    rotary: str = "RotaryEmbedding",
    block: str = "MoE",
    block_name: str = "mlp",
    gpu: str = "cuda",
    more: Sequence[Any] = (),
    experts: str = f"{EXPERTS}V2",
) -> str:
    """A file for one GPU, most of it by class, as the shipped ones for the server are."""
    own = f"{MODELS}.{modeling}.{prefix}"
    return text_of(
        [
            rule(f"{OPERATORS}.RoPE.Rotary", of=f"{own}{rotary}", **on(gpu)),
            rule(LINEAR, name="^lm_head$", of="torch.nn.Linear", **on(gpu), generate_op="VLinearMarlin"),
            rule(LINEAR, name=r"^model\.layers\.(?!.*self_attn\.kv_b_proj).*$", of="torch.nn.Linear", **on(gpu)),
            rule(
                f"{OPERATORS}.experts.KBlock", name=rf"^model\.layers\..*\.{block_name}$", of=f"{own}{block}", **on(gpu)
            ),
            cpu_experts(rf"^model\.layers\..*\.{block_name}\.experts$", gpu, experts, prefill_op="None"),
            rule(f"{OPERATORS}.balance_serve_attention.Attention", name=r"^model\.layers\..*\.self_attn$", **on(gpu)),
            rule(name="^model.embed_tokens", **on("cpu")),
            rule(f"{OPERATORS}.layernorm.RMSNorm", of=f"{own}RMSNorm", **on(gpu)),
            *more,
        ]
    )
