"""A causal LM on the meta device -> ModelTensors: which parameters are which block, and what each layer caches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from profiles.errors import ProfileError
from profiles.tensors import LayerTensors, ModelTensors, RoutedExperts, Tensor, Tensors, params
from runtime_adapter.meta.cache import layer_caches
from runtime_adapter.meta.errors import BY_HAND, one_line
from runtime_adapter.meta.run import Run, forward, outer_lists

TOKENS = (37, 41)
"""Two prompt lengths. Primes: a product of attention scores is known by its two sides being this long."""
COUNT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
ACTIVE_KEYS = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "num_selected_experts"),
    *("moe_topk", "moe_top_k", "moe_k", "top_k_experts", "router_top_k"),
)
FP32_BYTES = 4
KEPT_SEGMENTS = {"gate", "router", "shared_expert_gate", "shared_gate"}


def model_tensors(model: nn.Module, architecture: str) -> ModelTensors:
    """The blocks of `model` (in bf16 on the meta device). Raises ProfileError where they are not certain."""
    text = _text_settings(model)
    found = [m for name, m in model.named_modules() if _is_fused_experts(m, text) or name.endswith(".experts")]
    if found and (counts := _config_numbers(text, COUNT_KEYS)):
        _active(text, 0, max(counts))
    runs = [_run(model, tokens, found) for tokens in TOKENS]
    layers = _layers(model, runs[0], text)
    _refuse_unfit(model)
    hidden, vocab = int(text.hidden_size), int(text.vocab_size)
    named = _named_parameters(model)
    inside = {id(p): i for i, layer in enumerate(layers) for p in layer.parameters()}
    _refuse_shared(layers)
    before, after, unused = _outside(model, named, inside, layers, runs[0])
    embedding, head, tied = _ends(model, named, before, after)
    names = {id(module): name for name, module in model.named_modules()}
    parts = [_layer_tensors(layer, names[id(layer)], index, text, runs[0]) for index, layer in enumerate(layers)]
    caches, cache_notes = layer_caches(runs, layers, [tensors for tensors, _ in parts], lambda t: _run(model, t, found))
    blocks = tuple(LayerTensors(part[0], held, part[1]) for part, held in zip(parts, caches, strict=True))
    notes = _notes(model, unused) + cache_notes
    result = ModelTensors(architecture, hidden, vocab, embedding, blocks, head, tied, notes)
    _check_total(result, model, unused)
    return result


def _refuse_unfit(model: nn.Module) -> None:
    """ProfileError for an encoder and for a model with empty parameters."""
    empty = next((name for name, p in model.named_parameters() if not p.numel()), None)
    causal = [m.is_causal for m in model.modules() if isinstance(getattr(m, "is_causal", None), bool)]
    if causal and not any(causal):
        raise ProfileError(
            f"model_type: {type(model).__name__} is an encoder here, not causal; only decoders are planned"
        )
    if empty is not None:
        raise ProfileError(f"config.json: a size of 0 leaves {empty} empty; mend it")


def _text_settings(model: nn.Module) -> Any:
    settings: Any = model.config
    return settings.get_text_config(decoder=True)


def _is_fused_experts(module: nn.Module, text: Any) -> bool:
    """Own parameters that begin with the experts: three dimensions, or two where the rows are experts by width."""
    counts = _config_numbers(text, COUNT_KEYS)
    own = [p for p in module._parameters.values() if p is not None]
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return False
    return any(p.ndim == 3 and p.shape[0] in counts for p in own) or (bool(own) and _flat_count(module) in counts)


def _flat_count(module: nn.Module) -> int:
    """DBRX stacks its experts' rows in two dimensions and keeps their number beside them; 0 elsewhere."""
    count = getattr(module, "moe_num_experts", 0)
    return count if type(count) is int else 0


def _config_numbers(text: Any, keys: tuple[str, ...]) -> set[int]:
    holders = (text, getattr(text, "ffn_config", None), getattr(text, "moe_config", None))
    found = [getattr(holder, key, None) for holder in holders for key in keys]
    return {n for n in found if type(n) is int and n > 0}


def _run(model: nn.Module, tokens: int, skipped: list[nn.Module]) -> Run:
    """A forward with transformers' own cache for this config, or with the model's own where it insists on one."""
    from transformers import DynamicCache

    problem: Exception | None = None
    settings: Any = model.config
    for make in (lambda: DynamicCache(config=settings), lambda: None):
        try:
            return forward(model, tokens, make(), skipped)
        except Exception as raised:  # a forward may raise anything; to the user it means that the cache is unknown
            problem = problem or raised
    kind, reason = type(model).__name__, one_line(problem or RuntimeError())
    raise ProfileError(f"model_type: {kind} does not run on the meta device: {reason}; {BY_HAND}")


def _layers(model: nn.Module, run: Run, text: Any) -> list[nn.Module]:
    """The decoder layers: the one outer module list whose entries each ran once, in turn, and filled the cache."""
    order = [id(module) for module in run.entered]
    found = []
    for group in outer_lists(model):
        ids = [id(entry) for entry in group]
        if any(run.held.get(i) for i in ids) and [i for i in order if i in set(ids)] == ids:
            found.append(list(group))
    if len(found) != 1:
        raise ProfileError(
            f"model_type: {type(model).__name__} has {len(found)} lists of modules that run in turn and cache, "
            f"so its decoder layers are not certain; {BY_HAND}"
        )
    return found[0]


def _named_parameters(model: nn.Module) -> dict[int, tuple[str, nn.Parameter]]:
    """Every parameter once, under its first name."""
    return {id(p): (name, p) for name, p in model.named_parameters()}


def _refuse_shared(layers: list[nn.Module]) -> None:
    owner: dict[int, int] = {}
    for index, layer in enumerate(layers):
        for parameter in layer.parameters():
            if owner.setdefault(id(parameter), index) != index:
                raise ProfileError(
                    f"model_type: layers {owner[id(parameter)]} and {index} share weights, so they cannot be placed "
                    f"apart; {BY_HAND}"
                )


Named = dict[int, tuple[str, nn.Parameter]]


def _outside(
    model: nn.Module, named: Named, inside: dict[int, int], layers: list[nn.Module], run: Run
) -> tuple[Named, Named, Named]:
    """Parameters outside the layers: of modules that run before them, after them, and not at all for a text prompt."""
    order = [id(module) for module in run.entered]
    first, last = order.index(id(layers[0])), run.left[id(layers[-1])]
    within = {id(m) for layer in layers for m in layer.modules()}
    before: Named = {}
    after: Named = {}
    for position, module in enumerate(run.entered):
        own = {id(p): named[id(p)] for p in module._parameters.values() if p is not None and id(p) not in inside}
        if not own or id(module) in within:
            continue
        if position < first and run.left[id(module)] <= first:
            before |= own
        elif position >= last:
            after |= own
        else:
            name = next(iter(own.values()))[0]
            raise ProfileError(f"model_type: {name} is used between the layers, so it has no block; {BY_HAND}")
    used = before.keys() | after.keys() | inside.keys()
    return before, after, {key: value for key, value in named.items() if key not in used}


def _ends(model: nn.Module, named: Named, before: Named, after: Named) -> tuple[Tensors, Tensors, bool]:
    """Tensors of embedding and head, the token embedding first; whether the head uses the embedding's own."""
    tokens = model.get_input_embeddings().weight  # type: ignore[operator]
    output = model.get_output_embeddings()  # type: ignore[operator]
    if output is None or id(tokens) not in before:
        raise ProfileError(f"model_type: {type(model).__name__} has no token embedding and head; {BY_HAND}")
    tied = output.weight is tokens
    shared = (before.keys() & after.keys()) - {id(tokens)}
    if shared or (tied and id(tokens) not in after):
        raise ProfileError(f"model_type: {type(model).__name__} shares weights between its ends; {BY_HAND}")
    rest = [value for key, value in before.items() if key != id(tokens)]
    embedding = tuple(Tensor(name, tuple(p.shape)) for name, p in [named[id(tokens)], *rest])
    head = tuple(Tensor(name, tuple(p.shape)) for key, (name, p) in after.items() if key != id(tokens))
    if tied:
        head += (replace(embedding[0], name="lm_head.weight"),)
    return embedding, head, tied


def _layer_tensors(
    layer: nn.Module, prefix: str, index: int, text: Any, run: Run
) -> tuple[Tensors, RoutedExperts | None]:
    """The layer's tensors apart from its routed experts, and those."""
    groups = _expert_groups(layer, text)
    routed = {id(p) for group in groups for p in group}
    owners = {id(p): m for m in layer.modules() for p in m._parameters.values() if p is not None}
    hidden = int(text.hidden_size)
    around: list[Tensor] = []
    experts: list[Tensor] = []
    for name, parameter in layer.named_parameters():
        tensor = _tensor(f"{prefix}.{name}", parameter, owners[id(parameter)], hidden, bool(groups))
        (experts if id(parameter) in routed else around).append(tensor)
    if not experts:
        return tuple(around), None
    if len(groups) > 1:
        raise ProfileError(f"model_type: layer {index} has {len(groups)} sets of routed experts; {BY_HAND}")
    count = experts[0].shape[0]
    width = min(n for tensor in experts if len(tensor.shape) == 3 for n in _inner_sizes(tensor, hidden))
    routing = max((run.routing_bytes.get(id(module), 0) for module in layer.modules()), default=0) or FP32_BYTES
    return tuple(around), RoutedExperts(tuple(experts), count, _active(text, index, count), width, routing)


def _inner_sizes(tensor: Tensor, hidden: int) -> tuple[int, ...]:
    """Sizes of a matrix that are not the hidden size; both where both are."""
    return tuple(n for n in tensor.shape[-2:] if n != hidden) or tensor.shape[-2:]


def _expert_groups(layer: nn.Module, text: Any) -> list[list[nn.Parameter]]:
    """The parameters of each set of routed experts in the layer, told by their first dimension."""
    groups = []
    for module in layer.modules():
        if _is_fused_experts(module, text):
            own = [p for p in module._parameters.values() if p is not None]
            count = _flat_count(module) or next(p.shape[0] for p in own if p.ndim == 3)
            if any(p.shape[0] % count if _flat_count(module) else p.shape[0] != count for p in own):
                raise ProfileError(f"model_type: {type(module).__name__} mixes experts with other weights; {BY_HAND}")
            groups.append(own)
    for name, module in layer.named_modules():
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and name.rsplit(".", 1)[-1] == "experts" and len(module):
            raise ProfileError(f"model_type: {name} is a list of separate expert modules; {BY_HAND}")
    return groups


def _active(text: Any, index: int, count: int) -> int:
    """Experts that a token uses, by whatever name the config gives it."""
    for key in ACTIVE_KEYS:
        for holder in (text, getattr(text, "ffn_config", None), getattr(text, "moe_config", None)):
            value = getattr(holder, key, None)
            if isinstance(value, list) and len(value) > index:
                value = value[index]
            if type(value) is int:
                if not 1 <= value <= count:
                    raise ProfileError(f"{key}: {value} is not from 1 to the {count} experts there are; mend it")
                return value
    raise ProfileError(f"num_experts_per_tok: missing, and no known key says how many experts a token uses; {BY_HAND}")


def _tensor(name: str, parameter: nn.Parameter, owner: nn.Module, hidden: int, sparse: bool) -> Tensor:
    """How a parameter counts under a weight format; what is not known as a projection is never quantised."""
    shape, last = tuple(parameter.shape), name.rsplit(".", 1)[-1]
    if _flat_count(owner):
        count = _flat_count(owner)
        return Tensor(name, (count, shape[0] // count, *shape[1:]), sparse, transposed=last == "w2")
    if len(shape) == 3 and not isinstance(owner, nn.Conv1d):
        down = "down" in last or "output" in last
        given = getattr(owner, "is_transposed", None)
        transposed = (
            bool(given) if given is not None else shape[-1 if down else -2] == hidden != shape[-2 if down else -1]
        )
        return Tensor(name, shape, sparse, transposed, stacked=2 if "gate_up" in last else 1)
    router = sparse and bool(KEPT_SEGMENTS & set(name.split(".")))
    is_linear = isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D"
    quantisable = is_linear and len(shape) == 2 and not router
    fp32 = parameter.dtype == torch.float32  # the model itself asked for it: everything else is bf16 here
    return Tensor(name, shape, quantisable and not fp32, transposed=type(owner).__name__ == "Conv1D", fp32=fp32)


def _notes(model: nn.Module, unused: Named) -> tuple[str, ...]:
    notes = []
    buffers = [name for name in model.state_dict() if name.endswith(("correction_bias", "expert_bias"))]
    if set(buffers) - {name for name, _ in model.named_parameters()}:
        notes.append("router score-correction biases are buffers, not parameters, and are not counted")
    extra = getattr(_text_settings(model), "num_nextn_predict_layers", 0)
    if type(extra) is int and extra > 0:
        notes.append(f"{extra} multi-token-prediction layer(s) of the checkpoint are left out, as transformers does")
    if unused:
        towers = sorted({".".join(name.split(".")[:2]) for name, _ in unused.values()})
        count = sum(p.numel() for _, p in unused.values())
        notes.append(f"left out, as a text prompt does not use them: {', '.join(towers)} ({count} parameters)")
    return tuple(notes)


def _check_total(result: ModelTensors, model: nn.Module, unused: Named) -> None:
    """Every parameter is in exactly one block, or named as left out (only in a model of more than text)."""
    blocks = params(result.embedding) + params(result.head) - (params(result.embedding[:1]) if result.tied else 0)
    for layer in result.layers:
        blocks += params(layer.attention) + (params(layer.experts.tensors) if layer.experts else 0)
    left_out = sum(p.numel() for _, p in unused.values())
    total = sum(p.numel() for p in model.parameters())
    whole = _text_settings(model) is model.config
    if blocks + left_out != total or (left_out and whole):
        name = next(iter(unused.values()))[0] if unused else "some parameter"
        raise ProfileError(f"model_type: {name} runs with no block ({blocks} of {total} parameters placed); {BY_HAND}")
