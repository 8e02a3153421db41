"""What a KTransformers rules file means as a placement, and what is odd about it.

How a forward pass travels (kvcache-ai/ktransformers, `operators/models.py`, `util/utils.py`): tokens are looked up on
the CPU, the hidden states start on the device of layer 0's self_attn, and an entry of `transfer_map` moves them before
its layer and holds until the next entry. An operator moves its inputs to its own device; a plain module does not.

Errors are for what KT could not run, or no placement can say. All else is read, and what is odd becomes a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from profiles.document import one_line, short
from profiles.errors import TargetError
from profiles.placement import LayerPlacement, Placement
from runtime_adapter.targets.ktransformers.families import Family, family_of
from runtime_adapter.targets.ktransformers.modules import module_tree
from runtime_adapter.targets.ktransformers.notes import notes_on
from runtime_adapter.targets.ktransformers.rules import Rule, check_effort, parse_rules
from runtime_adapter.targets.ktransformers.simulator import FALLBACK, Resolved, resolve
from runtime_adapter.targets.target import Outline


def read(text: str, outline: Outline, where: str = "rules") -> Placement:
    """The placement that a rules file means for the model of `outline`, with one note for each oddity.

    Raises TargetError, naming `where` and the rule, when the text is not a rules file or when KT would stumble over it:
    an operator on the wrong kind of device, hidden states that never reach a layer's device, experts one by one.
    """
    rules, resolved = simulated(text, outline, where)
    try:
        return _placement(rules, resolved, outline)
    except TargetError as problem:
        raise TargetError(one_line(f"{where}: {problem}")) from None


def simulated(text: str, outline: Outline, where: str) -> tuple[Sequence[Rule], dict[str, Resolved]]:
    """The rules of the text, and what they make of every module."""
    modules = module_tree(family_of(outline.architecture), [count != 0 for count in outline.experts])
    rules = parse_rules(text, where)
    check_effort(rules, modules, where)
    try:
        return rules, resolve(rules, modules)
    except TargetError as problem:
        raise TargetError(one_line(f"{where}: {problem}")) from None


def _placement(rules: Sequence[Rule], resolved: Mapping[str, Resolved], outline: Outline) -> Placement:
    family = family_of(outline.architecture)
    layers = tuple(_layer(resolved, family, index, count != 0) for index, count in enumerate(outline.experts))
    for name, found in resolved.items():
        _check_module(found, layers, resolved.get(name.rpartition(".experts.")[0] + ".experts"))
    ends_on = _check_travel(resolved, layers)
    _check_norm(_find(resolved, "model.norm"), ends_on)
    return Placement(
        model=outline.model,
        architecture=outline.architecture,
        target="ktransformers",
        embedding=_device(_find(resolved, "model.embed_tokens")),
        head=_device(_find(resolved, "lm_head")),
        layers=layers,
        notes=tuple(one_line(note) for note in notes_on(rules, resolved, layers)) or None,
    )


def _find(resolved: Mapping[str, Resolved], name: str) -> Resolved:
    if name not in resolved:
        raise TargetError(f"no rule reaches {name}: a rule above it says `recursive: false`; remove that line")
    return resolved[name]


def _device(found: Resolved) -> str:
    if found.device is None:
        raise TargetError(f"{found.where}: {found.module.name} gets no generate_device; add it")
    return found.device


def _layer(resolved: Mapping[str, Resolved], family: Family, index: int, moe: bool) -> LayerPlacement:
    """The layer is where the rules put its attention: the first of its possible ones that a rule matches."""
    name = f"model.layers.{index}"
    homes = [_find(resolved, f"{name}.{attention}") for attention, _ in family.attentions]
    home = next((found for found in homes if found.rule), homes[0])
    experts = {_device(_find(resolved, f"{name}.{family.block_name}.experts")): "all"} if moe else {}
    return LayerPlacement.model_validate({"attention": _device(home), "experts": experts})


def _check_module(found: Resolved, layers: Sequence[LayerPlacement], experts: Resolved | None) -> None:
    """Raise TargetError for a module that KT could not load or run where its rule has it; `experts` is the module that
    it is one expert of."""
    module, part = found.module, found.module.part
    if part == "container":
        return
    device = _device(found)
    _check_operator(found, device)
    if module.layer is None or part == "experts":
        return
    layer = layers[module.layer]
    if part == "expert":
        if device not in layer.experts or (found.injected and experts is not None and experts.injected):
            problem = f"{found.where}: {module.name} is injected by itself"
            raise TargetError(f"{problem}; add `recursive: false` to the rule of its `experts`")
    elif found.rule and not found.injected and part != "rotary" and device != layer.attention:
        problem = f"{found.where}: {module.name} is on {device}, its layer's attention on {layer.attention}"
        raise TargetError(f"{problem}; give both one device")


def _check_operator(found: Resolved, device: str) -> None:
    """GPU operators refuse the CPU and the CPU operator refuses a GPU when KT builds them."""
    operator = str(found.kwargs.get("generate_op"))
    if (operator == "KExpertsCPU" and device != "cpu") or ("Marlin" in operator and device == "cpu"):
        problem = f"{found.where}: {found.module.name}: {operator} cannot run on {device}"
        raise TargetError(f"{problem}; change the operator or the device")


def _check_travel(resolved: Mapping[str, Resolved], layers: Sequence[LayerPlacement]) -> str:
    """Where the hidden states end. Raises TargetError where they do not arrive at a layer that a rule has placed."""
    model = _find(resolved, "model")
    transfers = dict(_transfers(model))
    here = layers[0].attention
    for index, layer in enumerate(layers):
        here = transfers.get(index, here)
        if here != layer.attention and not _fell(resolved, index):
            raise TargetError(
                f"{model.where}: layer {index} is on {layer.attention}, but transfer_map leaves the hidden states on "
                f"{here}; add `{index}: {layer.attention}` to it"
            )
    return here


def _transfers(model: Resolved) -> Iterator[tuple[Any, str]]:
    transfers = (model.kwargs.get("transfer_map") or {}) if model.injected else {}
    if not isinstance(transfers, dict):
        raise TargetError(f"{model.where}: transfer_map is {short(transfers)}; write `first layer: device` lines")
    for layer, device in transfers.items():
        yield layer, FALLBACK if device == "cuda" else str(device)


def _fell(resolved: Mapping[str, Resolved], layer: int) -> bool:
    """Whether no rule matches a layer's attention, so that it is on the fallback device by accident."""
    return not any(f.rule for f in resolved.values() if f.module.layer == layer and f.module.part == "attention")


def _check_norm(norm: Resolved, ends_on: str) -> None:
    if norm.rule and not norm.injected and _device(norm) != ends_on:
        problem = f"{norm.where}: model.norm is on {norm.device}, but the hidden states end on {ends_on}"
        raise TargetError(f"{problem}; move it there")
