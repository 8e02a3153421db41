"""Transient bytes of each block while it runs, as closed forms of its shapes (docs/model.md).

The forms describe transformers' own forward with a fused attention kernel.
"""

from __future__ import annotations

from profiles.model import Workspace
from profiles.tensors import Cache, RoutedExperts, Tensors

FP32_BYTES = 4
INDEX_BYTES = 8


def embedding_workspace(hidden: int, value: int) -> Workspace:
    """Transient bytes of the embedding: the ids and the vectors looked up."""
    return Workspace(per_token=hidden * value + INDEX_BYTES)


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
