"""llama.cpp's compute buffer, block by block, as closed forms of shapes (docs/model.md).

ggml plans a graph's buffers ahead: every device gets one as large as its busiest moment, for `prefill_chunk` tokens
(llama.cpp's ubatch) and the whole context. Activations are fp32, flash attention is on, and an operation on a tensor
that nobody else reads works in place. Held against logs of Qwen3-235B-A22B at 4096 tokens of ubatch and 32768 of
context in ikawrakow/ik_llama.cpp's github-data: the device of the head (2502.00 MiB) and the host (576.05 MiB) agree to
the last digit; a device between has 836.00 MiB where these forms say 1092, one of DeepSeek-R1 2872 where they say 3105.
So they are estimates from above, and no proof.

Ignored: the copy of CPU experts' weights that large batches bring to the GPU (counted apart, as staging), and
architectures whose graphs hold more than the usual (Qwen3-Next).
"""

from __future__ import annotations

from profiles.model import Workspace
from profiles.tensors import LayerTensors, ModelTensors, RoutedExperts, Tensor

FP32_BYTES = 4
MASK_BYTES = 2
"""Of a pair of tokens, in fp16; while it is made from the mask as it comes, both are there."""


def embedding_buffer(model: ModelTensors) -> Workspace:
    """Vectors looked up and the mask, on the host whatever the plan says: llama.cpp keeps the embedding there."""
    return Workspace(per_token=FP32_BYTES * model.hidden_size, per_token_pair=FP32_BYTES)


def head_buffer(model: ModelTensors) -> Workspace:
    """Logits of every token of the ubatch, as llama.cpp reserves them, and the input as it comes and normed."""
    return Workspace(per_token=FP32_BYTES * (model.vocab_size + 2 * model.hidden_size))


def attention_buffer(layer: LayerTensors, hidden: int) -> Workspace:
    """The mask on its way to fp16; attention, with residual and normed input; a dense or shared FFN's inner tensors."""
    inner = max((t.out_features for t in layer.attention if t.quantisable and ".up_proj." in t.name), default=0)
    window = layer.cache.window_tokens is not None

    def moment(values: int, pair_bytes: int) -> Workspace:
        return Workspace(
            per_token=FP32_BYTES * (2 * hidden + values),
            per_token_pair=0 if window else pair_bytes,
            per_window_pair=pair_bytes if window else 0,
        )

    casting = moment(0, MASK_BYTES + FP32_BYTES)
    return casting.replace(other_moments=(moment(_attending(layer), MASK_BYTES), moment(3 * inner, MASK_BYTES)))


def experts_buffer(experts: RoutedExperts, hidden: int) -> Workspace:
    """Gate, up and their product, then that and the outputs, of every pair of token and expert; residual and input."""
    pair = max(3 * experts.width, experts.width + hidden)
    return Workspace(
        per_token=FP32_BYTES * (2 * hidden + experts.active * pair + 2 * experts.count), per_token_pair=MASK_BYTES
    )


def _attending(layer: LayerTensors) -> int:
    """Values a token that attention works on at once: projected ones and attended ones (the output's inputs).

    Latent attention attends in the latent of every head: queries there, and the same joined with their rotary part or
    what they attend to. Linear attention has every projection about twice.
    """
    mixer = [t for t in layer.attention if t.quantisable and "attn" in t.name and ".kv_b_proj." not in t.name]
    last = sum(t.out_features for t in mixer if _is_output(t))
    projected = sum(t.out_features for t in mixer) - last
    if layer.cache.full_values_per_token:
        return projected + latent_heads(layer) * 2 * layer.cache.values_per_token
    attended = sum(t.in_features for t in mixer if _is_output(t))
    return projected + (attended if layer.cache.values_per_token else projected)


def _is_output(tensor: Tensor) -> bool:
    return tensor.name.endswith((".o_proj.weight", ".out_proj.weight"))


def latent_heads(layer: LayerTensors) -> int:
    """Heads of latent attention: full keys and values have a rotary part a head that kv_b's outputs lack.

    The rotary key comes from the same projection as the latent. A sparse attention's index may be cached beside them.
    Latent attention without a rotary part has to say how many heads it has.
    """
    if layer.cache.latent_heads:
        return layer.cache.latent_heads
    outputs = {t.name.rsplit(".", 2)[-2]: t.out_features for t in layer.attention if len(t.shape) > 1}
    rank = next(t.in_features for t in layer.attention if t.name.endswith(".kv_b_proj.weight"))
    rotary = outputs.get("kv_a_proj_with_mqa", layer.cache.values_per_token) - rank
    return max(1, (layer.cache.full_values_per_token - outputs["kv_b_proj"]) // max(1, rotary))
