"""The built-in architectures: each a few lines that say how its config.json becomes parts.

Only families whose every parameter is accounted for are here, and the tests compare each with transformers, tensor by
tensor. Anything else is read by the reader that knows all of transformers, never guessed from a similar family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TypeVar

from profiles.errors import ProfileError
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts import (
    FeedForward,
    Mixer,
    decoder,
    gated_delta_net,
    gated_mlp,
    grouped_query_attention,
    kept,
    latent_attention,
    layer_count,
    linear,
    mixture,
    norm,
)
from profiles.tensors import ModelTensors, Tensors, under

Part = TypeVar("Part", Mixer, FeedForward)
ATTENTION_KINDS = ("full_attention", "sliding_attention")
UNCOUNTED_BUFFERS = "router score-correction biases are buffers, not parameters, and are not counted"


def _dense(fields: Fields, *, bias: bool = False) -> Callable[[int], FeedForward]:
    """The same dense FFN in every layer."""
    part = gated_mlp(fields, fields.size("intermediate_size"), bias=bias)
    return lambda _: part


def _every_layer(part: Part) -> Callable[[int], Part]:
    return lambda _: part


def _windowed(fields: Fields, attention: Callable[..., Mixer], windows: list[int | None]) -> Callable[[int], Mixer]:
    """One mixer a layer, made once for each different window."""
    made = cache(lambda window: attention(fields, window=window))
    return lambda index: made(windows[index])


def _no_windows(fields: Fields) -> list[int | None]:
    return [None] * layer_count(fields)


def _uniform_windows(fields: Fields, default: int | None = None) -> list[int | None]:
    """`sliding_window`, where there is one, holds in every layer."""
    return [fields.maybe_size("sliding_window", default)] * layer_count(fields)


def _typed_windows(fields: Fields, otherwise: Callable[[int], bool], default: int | None) -> list[int | None]:
    """`sliding_window` in the layers that `layer_types` calls sliding; without that list, where `otherwise` says so."""
    layers, window = layer_count(fields), fields.maybe_size("sliding_window", default)
    kinds = fields.per_layer("layer_types", ATTENTION_KINDS, layers)
    sliding = [kind == "sliding_attention" for kind in kinds] if kinds else [otherwise(i) for i in range(layers)]
    if any(sliding) and window is None:
        raise ProfileError(
            f"{fields.prefix}sliding_window: missing though some layers slide; give their window in tokens"
        )
    return [window if slides else None for slides in sliding]


def _qwen_windows(fields: Fields) -> list[int | None]:
    """Qwen2 and Qwen3: windows only where `use_sliding_window`, from layer `max_window_layers` on."""
    if not fields.flag("use_sliding_window", False):
        return _no_windows(fields)
    first = fields.count("max_window_layers", 28, most=MAX_LAYERS)
    return _typed_windows(fields, lambda index: index >= first, 4096)


def _llama(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    attention = partial(grouped_query_attention, bias=bias, out_bias=bias)
    mixer = _windowed(fields, attention, _no_windows(fields))
    return decoder(fields, mixer, _dense(fields, bias=fields.flag("mlp_bias", False)))


def _mistral(fields: Fields) -> ModelTensors:
    mixer = _windowed(fields, grouped_query_attention, _uniform_windows(fields, 4096))
    return decoder(fields, mixer, _dense(fields))


def _seed_oss(fields: Fields) -> ModelTensors:
    bias, out_bias = fields.flag("attention_bias", True), fields.flag("attention_out_bias", False)
    attention = partial(grouped_query_attention, bias=bias, out_bias=out_bias, head_dim=128)
    mixer = _windowed(fields, attention, _no_windows(fields))
    return decoder(fields, mixer, _dense(fields, bias=fields.flag("mlp_bias", False)))


def _qwen2(fields: Fields) -> ModelTensors:
    attention = partial(grouped_query_attention, bias=True)
    return decoder(fields, _windowed(fields, attention, _qwen_windows(fields)), _dense(fields))


def _qwen3(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    attention = partial(grouped_query_attention, bias=bias, out_bias=bias, head_dim=128, qk_norm="head")
    return decoder(fields, _windowed(fields, attention, _qwen_windows(fields)), _dense(fields))


def _mixtral(fields: Fields) -> ModelTensors:
    sparse = mixture(fields, count="num_local_experts|num_experts", width=fields.size("intermediate_size"))
    mixer = _windowed(fields, grouped_query_attention, _uniform_windows(fields))
    return decoder(fields, mixer, _every_layer(sparse))


def _phimoe(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    sparse = mixture(
        fields, count="num_local_experts|num_experts", width=fields.size("intermediate_size"), router="router"
    )
    mixer = _windowed(fields, partial(grouped_query_attention, bias=bias, out_bias=bias), _uniform_windows(fields))
    head_bias = fields.flag("lm_head_bias", False)
    return decoder(fields, mixer, _every_layer(sparse), norm_bias=True, head_bias=head_bias)


def _minimax_m2(fields: Fields) -> ModelTensors:
    sparse = mixture(fields, count="num_local_experts|num_experts", width=fields.size("intermediate_size"))
    attention = partial(grouped_query_attention, head_dim=128, qk_norm="whole")
    mixer = _windowed(fields, attention, _no_windows(fields))
    return decoder(fields, mixer, _every_layer(sparse), notes=(UNCOUNTED_BUFFERS,))


def _olmoe(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    count, width = "num_experts|num_local_experts", fields.size("intermediate_size")
    sparse = mixture(fields, count=count, width=width, router_weight_bytes=2)
    attention = partial(grouped_query_attention, bias=bias, out_bias=bias, qk_norm="whole")
    return decoder(fields, _windowed(fields, attention, _no_windows(fields)), _every_layer(sparse))


def _qwen_sparse(fields: Fields, *, shared: bool) -> Callable[[int], FeedForward]:
    """Experts in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not name; a dense FFN elsewhere."""
    sparse = mixture(
        fields,
        count="num_experts|num_local_experts",
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("shared_expert_intermediate_size") if shared else 0,
        shared_name="shared_expert",
        shared_gate=shared,
        router_weight_bytes=2,
    )
    dense = gated_mlp(fields, fields.size("intermediate_size"))
    dense_layers = set(fields.whole_numbers("mlp_only_layers") or [])
    step = fields.size("decoder_sparse_step", 1)
    return lambda index: dense if index in dense_layers or (index + 1) % step else sparse


def _qwen2_moe(fields: Fields) -> ModelTensors:
    windows = _no_windows(fields)
    if fields.flag("use_sliding_window", False):
        last = fields.count("max_window_layers", 28, most=MAX_LAYERS)
        windows = _typed_windows(fields, lambda index: index % 2 == 0 and index < last, 4096)
    attention = partial(grouped_query_attention, bias=fields.flag("qkv_bias", True))
    return decoder(fields, _windowed(fields, attention, windows), _qwen_sparse(fields, shared=True))


def _qwen3_moe(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    slides = fields.flag("use_sliding_window", False)
    windows = _uniform_windows(fields, 4096) if slides else _no_windows(fields)
    attention = partial(grouped_query_attention, bias=bias, out_bias=bias, qk_norm="head")
    return decoder(fields, _windowed(fields, attention, windows), _qwen_sparse(fields, shared=False))


def _qwen3_next(fields: Fields) -> ModelTensors:
    bias, layers = fields.flag("attention_bias", False), layer_count(fields)
    interval = fields.size("full_attention_interval", 4)
    full = grouped_query_attention(fields, bias=bias, out_bias=bias, head_dim=256, qk_norm="head", gated=True)
    linear = gated_delta_net(fields)
    kinds = fields.per_layer("layer_types", ("full_attention", "linear_attention"), layers)
    is_full = (
        [kind == "full_attention" for kind in kinds] if kinds else [(i + 1) % interval == 0 for i in range(layers)]
    )
    return decoder(fields, lambda index: full if is_full[index] else linear, _qwen_sparse(fields, shared=True))


def _shared_and_routed(fields: Fields, *, shared_bias: bool = False) -> FeedForward:
    """DeepSeek's and GLM's experts: `n_shared_experts` shared ones are one FFN as wide as all of them."""
    width = fields.size("moe_intermediate_size")
    return mixture(
        fields,
        count="n_routed_experts|num_local_experts|num_experts",
        width=width,
        shared_width=fields.count("n_shared_experts", most=1000) * width,
        shared_bias=shared_bias,
    )


def _dense_first(fields: Fields, default: int, *, bias: bool = False) -> Callable[[int], FeedForward]:
    """A dense FFN in the first `first_k_dense_replace` layers, experts in the others."""
    step = fields.size("moe_layer_freq", 1)
    if step != 1:
        raise ProfileError(f"{fields.prefix}moe_layer_freq: {step} is not supported (transformers ignores it); use 1")
    first = fields.count("first_k_dense_replace", default, most=MAX_LAYERS)
    dense = gated_mlp(fields, fields.size("intermediate_size"), bias=bias)
    sparse = _shared_and_routed(fields, shared_bias=bias)
    return lambda index: dense if index < first else sparse


def _with_next_token_layers(model: ModelTensors, fields: Fields) -> ModelTensors:
    """`model` and the multi-token-prediction layers that come with its files: they are not loaded by transformers.

    Each is another last layer with norms and a projection of its own before it, and its own embedding and head.
    """
    extra = fields.count("num_nextn_predict_layers|num_mtp_layers", 0, most=MAX_LAYERS)
    if not extra:
        return replace(model, notes=(UNCOUNTED_BUFFERS,))
    hidden, vocab, last = model.hidden_size, model.vocab_size, len(model.layers) - 1
    layer = model.layers[last]
    own = layer.attention + (layer.experts.tensors if layer.experts else ())
    around = linear("eh_proj", hidden, 2 * hidden) + norm("enorm", hidden) + norm("hnorm", hidden)
    around += kept("embed_tokens.weight", vocab, hidden) + norm("shared_head.norm", hidden)
    around += kept("shared_head.head.weight", vocab, hidden)
    tensors: Tensors = ()
    for index in range(last + 1, last + 1 + extra):
        prefix = f"model.layers.{index}."
        tensors += tuple(replace(t, name=t.name.replace(f"model.layers.{last}.", prefix)) for t in own)
        tensors += under(prefix, around)
    left_out = f"{extra} multi-token-prediction layer(s) of the checkpoint are left out, as transformers does"
    return replace(model, mtp=tensors, notes=(UNCOUNTED_BUFFERS, left_out))


def _deepseek_v2(fields: Fields) -> ModelTensors:
    attention = latent_attention(fields, bias=fields.flag("attention_bias", False))
    return decoder(fields, _every_layer(attention), _dense_first(fields, 0, bias=fields.flag("mlp_bias", False)))


def _deepseek_v3(fields: Fields) -> ModelTensors:
    attention = latent_attention(fields, bias=fields.flag("attention_bias", False))
    return _with_next_token_layers(decoder(fields, _every_layer(attention), _dense_first(fields, 3)), fields)


def _glm4_moe_lite(fields: Fields) -> ModelTensors:
    layers = layer_count(fields)
    bias = fields.flag("attention_bias", False)
    attention = latent_attention(fields, bias=bias, rope_key="qk_rope_head_dim|head_dim")
    kinds = fields.per_layer("mlp_layer_types", ("dense", "sparse"), layers) or ["dense"] + ["sparse"] * (layers - 1)
    parts = {"dense": gated_mlp(fields, fields.size("intermediate_size")), "sparse": _shared_and_routed(fields)}
    model = decoder(fields, _every_layer(attention), lambda index: parts[kinds[index]])
    return _with_next_token_layers(model, fields)


def _glm4_moe(fields: Fields) -> ModelTensors:
    bias, qk_norm = fields.flag("attention_bias", False), fields.flag("use_qk_norm", False)
    # Without head_dim transformers rounds down, and its own default config (96 heads in 4096) relies on that.
    size = max(1, fields.size("hidden_size") // fields.size("num_attention_heads"))
    attention = grouped_query_attention(fields, bias=bias, head_dim=size, qk_norm="head" if qk_norm else "none")
    return _with_next_token_layers(decoder(fields, _every_layer(attention), _dense_first(fields, 1)), fields)


def _dots1(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    first = fields.count("max_window_layers", 62, most=MAX_LAYERS)
    slides = fields.maybe_size("sliding_window", 4096) is not None
    windows = _typed_windows(fields, lambda index: slides and index >= first, 4096)
    attention = partial(grouped_query_attention, bias=bias, out_bias=bias, qk_norm="head")
    return decoder(fields, _windowed(fields, attention, windows), _dense_first(fields, 0), notes=(UNCOUNTED_BUFFERS,))


def _gpt_oss(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", True)
    windows = _typed_windows(fields, lambda index: index % 2 == 0, 128)
    sparse = mixture(
        fields,
        count="num_local_experts|num_experts",
        width=fields.size("intermediate_size"),
        router="router",
        router_bias=True,
        expert_bias=True,
        transposed=True,
        active="num_experts_per_tok|experts_per_token",
        router_weight_bytes=2,
    )
    attention = partial(grouped_query_attention, bias=bias, out_bias=bias, head_dim=64, sinks=True)
    return decoder(fields, _windowed(fields, attention, windows), _every_layer(sparse))


def _llama4_windows(fields: Fields) -> list[int | None]:
    """`attention_chunk_size` in the layers with rotary positions (three of four), None in the others."""
    layers, chunk = layer_count(fields), fields.maybe_size("attention_chunk_size", 8192)
    kinds = fields.per_layer("layer_types", ("full_attention", "chunked_attention"), layers)
    interval = fields.size("no_rope_layer_interval", 4)
    rotary = fields.whole_numbers("no_rope_layers") or [(index + 1) % interval for index in range(layers)]
    if len(rotary) != layers:
        raise ProfileError(
            f"{fields.prefix}no_rope_layers: {len(rotary)} entries; give one for each of {layers} layers"
        )
    chunked = [kind == "chunked_attention" for kind in kinds] if kinds else [bool(uses) for uses in rotary]
    return [chunk if within else None for within in chunked]


def _llama4_text(fields: Fields) -> ModelTensors:
    layers, bias = layer_count(fields), fields.flag("attention_bias", False)
    step, listed = fields.size("interleave_moe_layer_step", 1), fields.whole_numbers("moe_layers")
    sparse_layers = set(range(step - 1, layers, step) if listed is None else listed)
    width = fields.size("intermediate_size")
    sparse = mixture(
        fields,
        count="num_local_experts",
        width=width,
        shared_width=width,
        shared_name="shared_expert",
        router="router",
        transposed=True,
        name="feed_forward",
    )
    dense = gated_mlp(fields, fields.size("intermediate_size_mlp"), name="feed_forward")
    attention = partial(grouped_query_attention, bias=bias, out_bias=bias, head_dim=128)
    mixer = _windowed(fields, attention, _llama4_windows(fields))
    return decoder(fields, mixer, lambda index: sparse if index in sparse_layers else dense)


def _llama4(fields: Fields) -> ModelTensors:
    """The text model inside Llama 4; the vision tower is left out."""
    text = fields.nested("text_config")
    inner = {**text.config, "tie_word_embeddings": fields.config.get("tie_word_embeddings", False)}
    model = _llama4_text(Fields({"model_type": "llama4_text", **inner}, text.prefix))
    return replace(model, architecture="llama4", notes=("the text model only: the vision tower is left out",))


FAMILIES: dict[str, Callable[[Fields], ModelTensors]] = {
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "dots1": _dots1,
    "glm4_moe": _glm4_moe,
    "glm4_moe_lite": _glm4_moe_lite,
    "gpt_oss": _gpt_oss,
    "kimi_k2": _deepseek_v3,
    "llama": _llama,
    "llama4": _llama4,
    "llama4_text": _llama4_text,
    "minimax_m2": _minimax_m2,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "phimoe": _phimoe,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "qwen3_next": _qwen3_next,
    "seed_oss": _seed_oss,
}
"""Hugging Face's `model_type` -> how to read it. `kimi_k2` has DeepSeek-V3's shapes under its own name."""
