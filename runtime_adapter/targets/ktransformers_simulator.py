"""KTransformers' rule resolution without KTransformers: which module a rules file puts on which device.

How KT resolves rules (kvcache-ai/ktransformers, `optimize/optimize.py`): modules are visited depth first; the first
rule whose name (`re.search`) and class (`isinstance`) both match wins; `recursive: false` hides the module's children
from every rule; a module that no rule matches gets the default device. How a forward pass then travels
(`operators/models.py`, `util/utils.py`): tokens are looked up on the CPU, the hidden states start on the device of
layer 0's self_attn, and an entry of `transfer_map` moves them before its layer and holds until the next entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiles.document import parse_document, short
from profiles.errors import TargetError
from profiles.hardware import DEVICE_NAME
from profiles.placement import LayerPlacement, Placement
from runtime_adapter.targets.ktransformers_modules import Module, architecture_of, module_tree


@dataclass(frozen=True)
class Resolved:
    """What the rules make of one module: its operator (an import path or "default") and its device.

    `device` is None where a rule matched but names no `generate_device`; such a module must hold no tensors.
    """

    module: Module
    operator: str
    device: str | None
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def read(text: str, architecture: str | None, has_experts: Sequence[bool], where: str = "rules") -> Placement:
    """The placement that a rules file means, for a model whose layer i has experts where `has_experts[i]`.

    Raises TargetError, naming `where`, when the text is not a rules file or when KT would stumble over it: a module
    away from its layer's device, hidden states that never reach a layer's device, an operator on the wrong kind of
    device, tokens embedded on a GPU.
    """
    modules = module_tree(architecture, has_experts)
    rules = parse_rules(text, where)
    try:
        return placement_of(resolve(rules, modules), architecture, has_experts)
    except TargetError as problem:
        raise TargetError(f"{where}: {problem}") from None


def parse_rules(text: str, where: str = "rules") -> list[dict[str, Any]]:
    """The rules of a file, in order. Raises TargetError unless it is a list of rules with `match` and `replace`."""
    rules = parse_document(text, where, TargetError)
    if not isinstance(rules, list):
        raise TargetError(f"{where}: expected a list of rules, got {short(rules)}; start each with '- match:'")
    for number, rule in enumerate(rules, 1):
        parts = [rule.get(key) for key in ("match", "replace")] if isinstance(rule, dict) else [None]
        if not all(isinstance(part, dict) for part in parts):
            raise TargetError(f"{where}: rule {number}: needs the mappings `match` and `replace`; add them")
        match = rule["match"]
        if not {"name", "class"} & set(match) or not all(isinstance(value, str) for value in match.values()):
            raise TargetError(f"{where}: rule {number}: `match` needs a `name` or a `class`, as text; add one")
        if not isinstance(rule["replace"].get("kwargs", {}), dict):
            raise TargetError(f"{where}: rule {number}: `kwargs` is not a mapping; write `key: value` lines")
        try:
            re.compile(match.get("name", ""))
        except (re.error, OverflowError, RecursionError) as problem:
            reason = f"`name` is not a regular expression: {problem}; mend it"
            raise TargetError(f"{where}: rule {number}: {reason}") from None
    return rules


def resolve(
    rules: Sequence[Mapping[str, Any]], modules: Sequence[Module], default_device: str = "cuda:0"
) -> dict[str, Resolved]:
    """Each module's operator and device, by module name; modules hidden by `recursive: false` are left out.

    `modules` must list parents before children.
    """
    resolved: dict[str, Resolved] = {}
    hidden: list[str] = []
    for module in modules:
        if any(module.name.startswith(prefix) for prefix in hidden):
            continue
        rule = next((rule for rule in rules if _matches(rule["match"], module)), None)
        if rule is None:
            resolved[module.name] = Resolved(module, "default", default_device)
            continue
        kwargs = rule["replace"].get("kwargs", {})
        operator = str(rule["replace"].get("class", "default"))
        resolved[module.name] = Resolved(module, operator, _device(kwargs), kwargs)
        if not rule.get("recursive", True):
            hidden.append(f"{module.name}.")
    return resolved


def _matches(match: Mapping[str, str], module: Module) -> bool:
    return ("class" not in match or match["class"] in module.classes) and (
        "name" not in match or re.search(match["name"], module.name) is not None
    )


def _device(kwargs: Mapping[str, Any]) -> str | None:
    """The device a rule gives, with KT's "cuda" read as its first GPU."""
    device = kwargs.get("generate_device")
    if device is None:
        return None
    if device == "cuda":
        return "cuda:0"
    if not isinstance(device, str) or not DEVICE_NAME.fullmatch(device):
        raise TargetError(f"generate_device {short(device)} is no device; use cpu or cuda:<index>")
    return device


def placement_of(resolved: Mapping[str, Resolved], architecture: str | None, has_experts: Sequence[bool]) -> Placement:
    """The placement behind resolved rules. Raises TargetError where KT could not run them; see `read`."""
    block = architecture_of(architecture).block_name
    placed = [_layer(resolved, index, block if moe else None) for index, moe in enumerate(has_experts)]
    embedding, head = _find(resolved, "model.embed_tokens"), _find(resolved, "lm_head")
    if embedding.device != "cpu":
        raise TargetError(f"model.embed_tokens is on {embedding.device}, but tokens are looked up on cpu; move it")
    _check_layers(resolved, placed)
    _check_travel(resolved, placed)
    _check_operators(resolved)
    return Placement(
        architecture=architecture, target="ktransformers", embedding="cpu", head=_device_of(head), layers=tuple(placed)
    )


def _find(resolved: Mapping[str, Resolved], name: str) -> Resolved:
    if name not in resolved:
        raise TargetError(f"no rule reaches {name}: a rule above it says `recursive: false`; remove that line")
    return resolved[name]


def _device_of(found: Resolved) -> str:
    if found.device is None:
        raise TargetError(f"{found.module.name}: its rule gives no generate_device; add it")
    return found.device


def _layer(resolved: Mapping[str, Resolved], index: int, block: str | None) -> LayerPlacement:
    name = f"model.layers.{index}"
    attention = _device_of(_find(resolved, f"{name}.self_attn"))
    experts = _device_of(_find(resolved, f"{name}.{block}.experts")) if block else None
    return LayerPlacement(attention=attention, experts={} if experts is None else {experts: "all"})


def _check_layers(resolved: Mapping[str, Resolved], placed: Sequence[LayerPlacement]) -> None:
    """Everything of a layer but its experts must be where its attention is."""
    for name, found in resolved.items():
        index = found.module.layer
        if index is None or name.endswith(".experts") or not found.module.holds_tensors:
            continue
        if ".experts." in name:
            raise TargetError(f"{name} is injected by itself; add `recursive: false` to the rule of its `experts`")
        if found.device != placed[index].attention:
            raise TargetError(
                f"{name} is on {found.device}, its layer's attention on {placed[index].attention}; give both one device"
            )


def _check_travel(resolved: Mapping[str, Resolved], placed: Sequence[LayerPlacement]) -> None:
    """The hidden states must arrive at every layer's device, and the final norm be where they end."""
    model = _find(resolved, "model")
    transfers = model.kwargs.get("transfer_map") or {} if model.operator != "default" else {}
    if not isinstance(transfers, dict):
        raise TargetError(f"transfer_map is {short(transfers)}; write `first layer: device` lines")
    here = placed[0].attention
    for index, layer in enumerate(placed):
        here = str(transfers.get(index, here))
        if here != layer.attention:
            raise TargetError(
                f"layer {index} is on {layer.attention}, but transfer_map leaves the hidden states on {here}; "
                f"add `{index}: {layer.attention}` to it"
            )
    norm = _find(resolved, "model.norm").device
    if norm != here:
        raise TargetError(f"model.norm is on {norm}, but the hidden states end on {here}; move it there")


def _check_operators(resolved: Mapping[str, Resolved]) -> None:
    """GPU operators refuse the CPU and the CPU operator refuses a GPU when KT builds them."""
    for name, found in resolved.items():
        operator = found.kwargs.get("generate_op")
        if operator is None:
            continue
        on_cpu = found.device == "cpu"
        if (operator == "KExpertsCPU" and not on_cpu) or ("Marlin" in str(operator) and on_cpu):
            raise TargetError(f"{name}: {operator} cannot run on {found.device}; change the operator or the device")
        answers_to = found.kwargs.get("out_device")
        home = resolved[name.rsplit(".", 2)[0] + ".self_attn"].device if name.endswith(".experts") else None
        if operator == "KExpertsCPU" and answers_to not in (home, "cuda" if home == "cuda:0" else home):
            raise TargetError(f"{name}: out_device is {answers_to}, but the layer is on {home}; set it to {home}")
