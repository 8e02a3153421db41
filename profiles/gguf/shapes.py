"""A GGUF file's metadata and tensor infos -> ModelTensors: the shapes and caches that others find in config.json.

Which layers slide is not in most files but in llama.cpp's source, by architecture (`SLIDES_EVERY`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from profiles.errors import ProfileError
from profiles.gguf.blocks import home_of, layer_counts
from profiles.gguf.header import GgufEntry
from profiles.gguf.metadata import REMEDY, Metadata
from profiles.gguf.tensors import GgufTensor
from profiles.hf_config.fields import MAX_EXPERTS
from profiles.tensors import Cache, LayerTensors, ModelTensors, RoutedExperts, Tensor, Tensors

SLIDES_EVERY = {
    "gpt-oss": 2, "gemma2": 2, "gemma3n": 5, "gemma3": 6, "cohere2": 4, "olmo2": 4, "exaone4": 4, "llama4": 4,
    "afmoe": 4,
}  # fmt: skip
"""Of so many layers the last attends to everything and the others slide (llama.cpp: set_swa_pattern)."""
CHUNK_OF_LLAMA4 = 8192
ARCHITECTURES = {
    "qwen3moe": "qwen3_moe", "qwen2moe": "qwen2_moe", "glm4moe": "glm4_moe", "qwen3next": "qwen3_next",
    "llama4": "llama4_text", "minimax-m2": "minimax_m2",
}  # fmt: skip
"""GGUF's name of an architecture -> Hugging Face's, where replacing dashes does not give it."""
HF_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "attn_q_a": "self_attn.q_a_proj", "attn_q_b": "self_attn.q_b_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_kv_b": "self_attn.kv_b_proj", "attn_sinks": "self_attn.sinks",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj", "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba", "ssm_out": "linear_attn.out_proj",
    "ssm_conv1d": "linear_attn.conv1d", "ssm_a": "linear_attn.A_log", "ssm_dt": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
}  # fmt: skip
ROUTES_IN_16_BITS = ("gpt-oss", "olmoe", "qwen2moe", "qwen3moe", "qwen3next")
"""Architectures whose routing weights meet the experts' outputs in the activations' type; in others they are fp32."""
KEPT = ("_norm", "ffn_gate_inp", "ssm_conv1d")
Shapes = Mapping[str, tuple[int, ...]]
"""The tensors of a layer: name after `blk.N.` -> shape in ggml's order."""


def model_of(fields: Metadata, entries: Sequence[GgufEntry]) -> tuple[ModelTensors, tuple[str, ...]]:
    """The model of the file, and notes on what was assumed. Raises ProfileError where the file does not say enough."""
    layers, extra = layer_counts(fields, entries)
    by_layer: list[list[GgufTensor]] = [[] for _ in range(layers)]
    top: dict[str, GgufTensor] = {}
    for entry in entries:
        tensor = entry.tensor
        home = home_of(tensor.name, tensor.layer, layers, extra)
        if home.part in ("attention", "experts"):
            by_layer[home.layer].append(tensor)
        elif home.part != "mtp":
            top[tensor.name] = tensor
    empty = next((i for i, found in enumerate(by_layer) if not found), None)
    if empty is not None:
        raise ProfileError(f"layer {empty} of {layers} has no tensors; download the whole file, and all of its shards")
    if "token_embd.weight" not in top or len(top["token_embd.weight"].shape) != 2:
        raise ProfileError("token_embd.weight: missing, so this is no language model; give the file of its decoder")
    hidden, vocab = top["token_embd.weight"].shape
    windows, notes = _windows(fields, layers)
    is_tied = "output.weight" not in top
    head = [t for name, t in top.items() if name.startswith("output")]
    tensors = ModelTensors(
        architecture=_architecture(fields, by_layer),
        hidden_size=hidden,
        vocab_size=vocab,
        embedding=(Tensor("model.embed_tokens.weight", (vocab, hidden)),),
        layers=tuple(_layer(i, found, windows[i], fields) for i, found in enumerate(by_layer)),
        head=tuple(_tensor(t.name, t) for t in head)
        + ((Tensor("lm_head.weight", (vocab, hidden)),) if is_tied else ()),
        tied=is_tied,
    )
    return tensors, notes


def _architecture(fields: Metadata, by_layer: list[list[GgufTensor]]) -> str:
    """Hugging Face's name of the family, which exporters ask for."""
    name, sparse = fields.architecture, bool(fields.number(".expert_count", MAX_EXPERTS))
    if name == "deepseek2":
        has_bias = any("exp_probs_b" in t.name for t in by_layer[-1]) or fields.number(".expert_gating_func") == 2
        return "deepseek_v3" if has_bias else "deepseek_v2"
    if name == "llama" and sparse:
        return "mixtral"
    return ARCHITECTURES.get(name, name.replace("-", "_"))


def _windows(fields: Metadata, layers: int) -> tuple[list[int | None], tuple[str, ...]]:
    """The window of every layer, None where it attends to everything."""
    name, window = fields.architecture, fields.number(".attention.sliding_window", 10**9)
    if name == "llama4":
        window = fields.number(".attention.chunk_size") or CHUNK_OF_LLAMA4
    if not window:
        return [None] * layers, ()
    pattern = fields.by_layer(".attention.sliding_window_pattern", layers)
    if pattern is None and name in SLIDES_EVERY:
        pattern = [SLIDES_EVERY[name]] * layers
    if pattern is None:
        return [None] * layers, (
            f"a window of {window} tokens is in the file but not which layers slide: counted whole",
        )
    if set(pattern) <= {0, 1}:
        return [window if slides else None for slides in pattern], ()
    return [window if (i + 1) % every else None for i, every in enumerate(pattern)], ()


def _layer(index: int, found: list[GgufTensor], window: int | None, fields: Metadata) -> LayerTensors:
    parts: dict[str, list[GgufTensor]] = {"attention": [], "experts": []}
    for tensor in found:
        parts[home_of(tensor.name, index, index + 1, 0).part].append(tensor)
    around, routed = parts["attention"], parts["experts"]
    shapes = {t.name.split(".", 2)[2]: t.shape for t in around}
    prefix = f"model.layers.{index}."
    tensors: Tensors = tuple(_tensor(_hf_name(t, prefix), t) for t in around if not _is_half_of_kv_b(t))
    if "attn_k_b.weight" in shapes and "attn_kv_b.weight" not in shapes:
        tensors += (_whole_kv_b(prefix, shapes),)
    cache = _cache(index, shapes, window, fields)
    return LayerTensors(tensors, cache, _routed(prefix, routed, fields) if routed else None)


def _is_half_of_kv_b(tensor: GgufTensor) -> bool:
    """Latent attention's kv_b may be in a file whole, in two parts, or both: it is one projection."""
    return tensor.name.split(".")[2] in ("attn_k_b", "attn_v_b")


def _whole_kv_b(prefix: str, shapes: Shapes) -> Tensor:
    rank, out = _kv_b(shapes)
    return Tensor(f"{prefix}self_attn.kv_b_proj.weight", (out, rank), quantisable=True)


def _kv_b(shapes: Shapes) -> tuple[int, int]:
    """(rank, outputs) of latent attention's kv_b, whole or in two parts: nope + v values a head."""
    if "attn_kv_b.weight" in shapes:
        return _matrix(shapes, "attn_kv_b.weight")
    keys, values = shapes.get("attn_k_b.weight", ()), shapes.get("attn_v_b.weight", ())
    if not keys or not values:
        raise ProfileError(f"attn_kv_b.weight: missing, whole and in its two parts; {REMEDY}")
    rank = values[0]
    return rank, (prod(keys) + prod(values)) // rank


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    """(inputs, outputs) of a projection that a layer must have."""
    shape = shapes.get(name, ())
    if len(shape) != 2:
        raise ProfileError(f"{name}: {'missing' if not shape else f'of shape {list(shape)}'} in a layer; {REMEDY}")
    return shape[0], shape[1]


def _hf_name(tensor: GgufTensor, prefix: str) -> str:
    stem, _, suffix = tensor.name.split(".", 2)[2].partition(".")
    return f"{prefix}{HF_NAMES.get(stem, stem)}{'.' if suffix else ''}{suffix}"


def _tensor(name: str, tensor: GgufTensor) -> Tensor:
    matrix = len(tensor.shape) > 1 and not any(part in tensor.name for part in KEPT)
    return Tensor(name, tuple(reversed(tensor.shape)), quantisable=matrix)


def _cache(index: int, shapes: Shapes, window: int | None, fields: Metadata) -> Cache:
    """What the layer caches, from the shapes of its own projections: they hold whatever the metadata leaves out."""
    stems = {name.split(".")[0] for name in shapes}
    if any(stem.startswith("ssm_") for stem in stems):
        return Cache(state_fp32_values=_recurrent_state(fields))
    if any(stem.startswith("shortconv") for stem in stems):
        return Cache(state_fp32_values=(fields.size(".shortconv.l_cache") - 1) * fields.size(".embedding_length"))
    if any(stem.startswith("time_mix") for stem in stems):
        problem = f"general.architecture: {fields.architecture}: its recurrence is not known"
        raise ProfileError(f"{problem}; write a profile YAML")
    if "attn_kv_a_mqa" in stems:
        return _latent_cache(shapes)
    if "attn_k" in stems:
        keys = _matrix(shapes, "attn_k.weight")[1]
        values = _matrix(shapes, "attn_v.weight")[1] if "attn_v" in stems else keys
        attended = _matrix(shapes, "attn_output.weight")[0]
        return Cache(values_per_token=keys + values, window_tokens=window, flops_per_token_pair=4 * attended)
    if "attn_qkv" in stems:
        return _fused_cache(index, shapes, window, fields)
    return Cache()  # a layer that mixes no tokens


def _latent_cache(shapes: Shapes) -> Cache:
    """Latent attention: the latent and the rotary key of a token, or keys and values of every head."""
    latent = _matrix(shapes, "attn_kv_a_mqa.weight")[1]
    queries = _matrix(shapes, "attn_q_b.weight" if "attn_q_b.weight" in shapes else "attn_q.weight")[1]
    attended, expanded = _matrix(shapes, "attn_output.weight")[0], _kv_b(shapes)[1]
    if expanded >= queries + attended:  # keys lack the rotary part that queries have
        raise ProfileError(f"attn_kv_b: {expanded} values a token do not fit queries of {queries}; {REMEDY}")
    return Cache(
        values_per_token=latent,
        flops_per_token_pair=2 * (queries + attended),
        expanded_values_per_token=queries + expanded,
        full_values_per_token=queries + attended,
    )


def _fused_cache(index: int, shapes: Shapes, window: int | None, fields: Metadata) -> Cache:
    """Queries, keys and values from one projection: how it divides is in the metadata alone."""
    attended = _matrix(shapes, "attn_output.weight")[0]
    whole = fields.by_layer(".attention.head_count", index + 1) or [0]
    grouped = fields.by_layer(".attention.head_count_kv", index + 1) or whole
    heads, kv_heads = whole[index], grouped[index]
    if not heads or kv_heads > heads:
        raise ProfileError(f"{fields.architecture}.attention.head_count: layer {index} has {heads}; {REMEDY}")
    return Cache(
        values_per_token=2 * attended * kv_heads // heads, window_tokens=window, flops_per_token_pair=4 * attended
    )


def _recurrent_state(fields: Metadata) -> int:
    """Values of a convolution's and a recurrence's state, both in fp32 in llama.cpp."""
    inner, state = fields.size(".ssm.inner_size"), fields.size(".ssm.state_size")
    groups = fields.number(".ssm.group_count") or 0
    return (fields.size(".ssm.conv_kernel") - 1) * (inner + 2 * groups * state) + state * inner


def _routed(prefix: str, found: list[GgufTensor], fields: Metadata) -> RoutedExperts:
    """Gate and up as one tensor, as Hugging Face has them."""
    count, active = fields.size(".expert_count", MAX_EXPERTS), fields.size(".expert_used_count", MAX_EXPERTS)
    if active > count:
        raise ProfileError(f"{fields.architecture}.expert_used_count: {active} of {count} experts; {REMEDY}")
    matrices = [t for t in found if t.name.endswith(".weight")]
    down = next((t for t in matrices if ".ffn_down" in t.name and len(t.shape) > 1), None)
    if down is None:
        raise ProfileError(f"{found[0].name}: no down projection of experts beside it; {REMEDY}")
    width, hidden = down.shape[:2]
    inside: list[Tensor] = [Tensor(f"{prefix}mlp.experts.down_proj", (count, hidden, width), quantisable=True)]
    if others := sum(t.numel for t in matrices if ".ffn_down" not in t.name):
        shape = (count, others // count // hidden, hidden)
        inside.append(Tensor(f"{prefix}mlp.experts.gate_up_proj", shape, True, stacked=2))
    biases = [t for t in found if not t.name.endswith(".weight")]
    inside += [Tensor(f"{prefix}mlp.experts.{t.name.split('.', 2)[2]}", (t.numel,)) for t in biases]
    routing_bytes = 2 if fields.architecture in ROUTES_IN_16_BITS else 4
    return RoutedExperts(tuple(inside), count, active, width, routing_bytes)
