"""From tensors to a profile: bytes, parameters, cache and workspace of every block under one weight format.

All readers of shapes (a built-in family, transformers, files of tensors) end here, so they count alike.
"""

from __future__ import annotations

from pydantic import ValidationError

from profiles.document import first_problem
from profiles.errors import ProfileError
from profiles.model import Attention, Block, Experts, KindBytes, Layer, ModelProfile, Workspace
from profiles.quant import check_fits_model, tensors_bytes, value_bytes
from profiles.tensors import Cache, LayerTensors, ModelTensors, RoutedExperts, Tensors, params

FP32_BYTES = 4
INDEX_BYTES = 8


def profile_of(model: ModelTensors, name: str, quant: str, source: str, notes: tuple[str, ...] = ()) -> ModelProfile:
    """The profile of `model` with its weights in `quant`; `notes` are the reader's, before those about shapes.

    Raises ProfileError where a block would not be a possible one.
    """
    check_fits_model(quant, model)
    try:
        return _profile(model, name, quant, source, notes)
    except ValidationError as problem:
        raise ProfileError(f"config.json: {first_problem(problem, ModelProfile)}; mend it") from None


def _profile(model: ModelTensors, name: str, quant: str, source: str, notes: tuple[str, ...]) -> ModelProfile:
    value = value_bytes(quant)
    embedding = Block(
        weight_bytes=_bytes(tensors_bytes(model.embedding, quant)),
        params=params(model.embedding),
        workspace_bytes=Workspace(per_token=model.hidden_size * value + INDEX_BYTES),
    )
    head = Block(
        weight_bytes=_bytes(tensors_bytes(model.head, quant)),
        params=params(model.head),
        workspace_bytes=head_workspace(model.hidden_size, model.vocab_size, value),
    )
    return ModelProfile(
        model=name,
        architecture=model.architecture,
        quant=quant,
        source=source,
        notes=notes + model.notes,
        hidden_size=model.hidden_size,
        activation_bytes=value,
        tied_bytes=tensors_bytes(model.embedding[:1], quant) if model.tied else 0,
        embedding=embedding,
        head=head,
        layers=[_layer(layer, model.hidden_size, quant, value) for layer in model.layers],
    )


def _bytes(number: int) -> KindBytes:
    return KindBytes(gpu=number, cpu=number)


def _layer(layer: LayerTensors, hidden: int, quant: str, value: int) -> Layer:
    attention = Attention(
        weight_bytes=_bytes(tensors_bytes(layer.attention, quant)),
        params=params(layer.attention),
        workspace_bytes=attention_workspace(layer.attention, layer.cache, hidden, value),
        kv_bytes_per_token=layer.cache.values_per_token * value,
        kv_window_tokens=layer.cache.window_tokens,
        state_bytes=layer.cache.state_values * value + layer.cache.state_fp32_values * FP32_BYTES,
        flops_per_token_pair=layer.cache.flops_per_token_pair,
    )
    if layer.experts is None:
        return Layer(attention=attention)
    experts = Experts(
        weight_bytes=_bytes(tensors_bytes(layer.experts.tensors, quant, experts=True)),
        params=params(layer.experts.tensors),
        workspace_bytes=experts_workspace(layer.experts, hidden, value),
        count=layer.experts.count,
        active=layer.experts.active,
    )
    return Layer(attention=attention, experts=experts)


def attention_workspace(tensors: Tensors, cache: Cache, hidden: int, value: int) -> Workspace:
    """Transient bytes of a layer without its experts, in prefill with a fused attention kernel (no scores matrix).

    The largest of these moments, per token, H the hidden size, `value` the bytes of one activation:
    - a norm: residual, and an fp32 copy and its square: H * (value + 8);
    - a module (attention, dense FFN, one shared FFN): residual and normed input, and every projection's output twice,
      itself and once rotated, activated or made contiguous: value * (2 H + 2 * sum of outputs).
    Per cached token: what latent attention expands from the cache (exact: 235 MB for DeepSeek-V2 at 2048 tokens), so
    that projection is not counted per token. Ignored: the kernel's own workspace, masks, allocator rounding; a bound
    by construction for bf16 weights, not measured for quantised ones, whose kernels may unpack weights.
    """
    outputs: dict[str, int] = {}
    for tensor in tensors:
        if tensor.quantisable and not (cache.expanded_values_per_token and ".kv_b_proj." in tensor.name):
            module = tensor.name.rsplit(".", 2)[0]
            outputs[module] = outputs.get(module, 0) + tensor.out_features * tensor.matrices
    busiest = max(outputs.values(), default=0)
    per_token = max(hidden * (value + 2 * FP32_BYTES), value * 2 * (hidden + busiest))
    return Workspace(per_token=per_token, per_context_token=cache.expanded_values_per_token * value)


def experts_workspace(experts: RoutedExperts, hidden: int, value: int) -> Workspace:
    """Transient bytes of routed experts in prefill with transformers' grouped matrix products.

    For T tokens, k experts a token, S = T k, hidden size H, expert width I, activations of v bytes, routing weights of
    w bytes, the larger of two moments:
        at the gate:        v T H + v S H + 4 v S I                  (gathered inputs; gate-up, activated, product)
        at the last gather: v T H + S H (2 v + 2 w) + 8 S            (outputs, their weighted copies)
    plus index arithmetic, S (28 + 2 w) + 8 T, and 8 a expert. Checked against the peak bytes of a fake-tensor run of
    DeepSeek-V2, DeepSeek-V3, Mixtral-8x22B and Qwen3-235B at 2048 tokens in bf16: equal to the byte.
    Ignored: other experts implementations (eager needs less, batched far more), quantised kernels, allocator rounding.
    """
    k, weight = experts.active, experts.router_weight_bytes
    gate = value * (hidden + k * hidden + 4 * k * experts.width)
    gather = value * hidden + k * hidden * 2 * (value + weight) + INDEX_BYTES * k
    indices = k * (28 + 2 * weight) + INDEX_BYTES
    return Workspace(per_token=max(gate, gather) + indices, per_sequence=INDEX_BYTES * experts.count)


def head_workspace(hidden: int, vocab: int, value: int) -> Workspace:
    """Transient bytes of the head: the final norm of every token, logits of the last one and their fp32 copy.

    Ignored: sampling's own copies (sorting for top-p), and callers that ask for the logits of the whole prompt.
    """
    return Workspace(per_token=hidden * (value + 2 * FP32_BYTES), per_sequence=vocab * (value + FP32_BYTES))
