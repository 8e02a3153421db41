"""What is odd about a KTransformers rules file, one line each: it runs, or would, but perhaps not as it was meant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from profiles.document import short
from profiles.placement import LayerPlacement, in_short
from runtime_adapter.targets.ktransformers.rules import Rule
from runtime_adapter.targets.ktransformers.simulator import FALLBACK, Resolved

STOPS = "the first prompt would stop there"


def notes_on(
    rules: Sequence[Rule], resolved: Mapping[str, Resolved], layers: Sequence[LayerPlacement]
) -> Iterator[str]:
    """The notes: gaps first, then what is apart from its layer, then rules that do nothing, then the ends."""
    yield from _gaps(resolved)
    yield from _apart(resolved, layers)
    yield from _detours(resolved, layers)
    yield from _idle(rules, resolved)
    yield from _other_makers(rules)
    for rule in rules:
        yield from _oddities(rule)
    yield from _ends(resolved, layers)


def _gaps(resolved: Mapping[str, Resolved]) -> Iterator[str]:
    """Layers that no rule reaches where other layers have one: they fall to cuda:0, as a rule by accident."""
    unmatched: dict[str, list[int]] = defaultdict(list)
    matched: set[str] = set()
    for found in resolved.values():
        module = found.module
        if module.layer is None or module.part not in ("attention", "experts", "norm"):
            continue
        if found.rule:
            matched.add(module.in_layer)
        else:
            unmatched[module.in_layer].append(module.layer)
    by_layers: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, layers in unmatched.items():
        if name in matched:
            by_layers[tuple(layers)].append(name)
    for numbers, names in by_layers.items():
        more = f" and {len(names) - 1} more modules" if len(names) > 1 else ""
        yield f"layers {in_short(list(numbers))} fall to {FALLBACK}: no rule matches their {names[0]}{more}"
    yield from _plain_experts(resolved)


def _plain_experts(resolved: Mapping[str, Resolved]) -> Iterator[str]:
    """Layers whose experts no operator replaces as a whole: perhaps a gap in the experts' rules."""
    one_of = {found.module.layer: found for found in resolved.values() if found.module.part == "expert"}
    plain: dict[tuple[str, str], list[int]] = defaultdict(list)
    for found in resolved.values():
        layer = found.module.layer
        if found.module.part == "experts" and not found.injected and layer is not None:
            one = one_of.get(layer)
            how = f"one by one, by {one.where}" if one and one.injected else "plain 16-bit modules"
            plain[how, str(found.device)].append(layer)
    for (how, device), layers in plain.items():
        yield f"no operator for the experts of layers {in_short(layers)}: they are {how}, on {device}"


def _apart(resolved: Mapping[str, Resolved], layers: Sequence[LayerPlacement]) -> Iterator[str]:
    """Modules on another device than their layer's attention; a plan counts them with it."""
    apart: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for found in resolved.values():
        module = found.module
        if module.layer is None or module.part in ("container", "rotary", "experts", "expert"):
            continue
        home = layers[module.layer].attention
        if found.device != home:
            apart[f"{found.where}: {module.part}s", str(found.device), home].append(module.layer)
    for (what, device, home), numbers in apart.items():
        layers_there = in_short(sorted(set(numbers)))
        yield f"{what} of layers {layers_there} are on {device}, the layers on {home}: counted with their layer"


def _detours(resolved: Mapping[str, Resolved], layers: Sequence[LayerPlacement]) -> Iterator[str]:
    """Experts on the CPU that answer to another GPU than their layer's."""
    answers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for found in resolved.values():
        module = found.module
        if module.part == "experts" and found.rule and found.device == "cpu" and module.layer is not None:
            back = found.rule.device("out_device") or FALLBACK
            if back != layers[module.layer].attention:
                answers[found.where, back, layers[module.layer].attention].append(module.layer)
    for (where, back, home), numbers in answers.items():
        yield (
            f"{where}: out_device is {back}, but layers {in_short(numbers)} are on {home}; set it to {home}, or each "
            "token takes a detour, and a CUDA graph cannot be recorded"
        )


def _idle(rules: Sequence[Rule], resolved: Mapping[str, Resolved]) -> Iterator[str]:
    """Rules that decide nothing."""
    used = {id(found.rule) for found in resolved.values()}
    for rule in rules:
        if id(rule) in used:
            continue
        if any(rule.matches(found.module) for found in resolved.values()):
            yield f"{rule.where} decides nothing: earlier rules, or `recursive: false`, take all that it matches"
        else:
            asked = rule.name.pattern if rule.name else rule.module_class
            yield f"{rule.where} matches nothing of this model: {short(asked)}"


def _other_makers(rules: Sequence[Rule]) -> Iterator[str]:
    """Devices that are no CUDA devices."""
    named: dict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        named[str(rule.kwargs.get("generate_device"))].append(rule)
    for device, those in named.items():
        if device.startswith(("xpu", "npu", "musa")):
            yield f"{device} is counted as {those[0].device()}, first in {those[0].where}"


def _oddities(rule: Rule) -> Iterator[str]:
    device, prefill = rule.device(), rule.device("prefill_device")
    on_experts = "generate_op" in rule.kwargs and "Experts" in str(rule.kwargs["generate_op"])
    if "prefill_device" in rule.kwargs and prefill != device and not on_experts and not rule.kwargs.get("out_device"):
        yield f"{rule.where}: prefill_device {prefill} is not generate_device {device}, which the plan follows"
    threshold = rule.kwargs.get("per_layer_prefill_intput_threshold", 0)
    if threshold:
        yield (
            f"{rule.where}: longer prompts than {short(threshold)} tokens load each layer's experts to the GPU in 16 "
            "bits, which is not counted; 0 turns that off"
        )


def _ends(resolved: Mapping[str, Resolved], layers: Sequence[LayerPlacement]) -> Iterator[str]:
    embedding, norm, head = (resolved[name] for name in ("model.embed_tokens", "model.norm", "lm_head"))
    last = layers[-1].attention
    if embedding.device != "cpu":
        yield f"{embedding.where}: model.embed_tokens is on {embedding.device}, but tokens are looked up on cpu"
    if norm.device != last:
        stops = "" if norm.injected else f"; {STOPS}"
        yield f"{norm.where}: model.norm is on {norm.device}, the last layer on {last}{stops}"
    if head.device != last and not head.injected:
        yield f"{head.where}: lm_head is a plain module on {head.device}, the last layer is on {last}; {STOPS}"
