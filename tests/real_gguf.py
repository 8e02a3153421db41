"""Tensors of published GGUF files, written down by hand: names, shapes in ggml's order, types as Q4_K_M has them."""

from __future__ import annotations

from typing import Any

from gguf_files import T, Tensors

Q4, Q5, Q6, Q8, F32, MX = T.Q4_K, T.Q5_0, T.Q6_K, T.Q8_0, T.F32, T.MXFP4


def more(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def deepseek_v2_lite() -> tuple[str, dict[str, Any], Tensors]:
    """Expert width 1408 and dense width 10944 are no multiples of 256, so their down projections fall back."""
    fields = {
        ".block_count": 27, ".embedding_length": 2048, ".attention.head_count": 16, ".attention.head_count_kv": 16,
        ".attention.key_length": 192, ".attention.value_length": 128, ".attention.kv_lora_rank": 512,
        ".rope.dimension_count": 64, ".expert_count": 64, ".expert_used_count": 6, "general.file_type": 15,
    }  # fmt: skip
    found = [("token_embd.weight", (2048, 102400), Q4)]
    for i in range(27):
        b = f"blk.{i}."
        down = Q8 if more(i, 27) else Q5
        found += [
            (b + "attn_norm.weight", (2048,), F32), (b + "ffn_norm.weight", (2048,), F32),
            (b + "attn_q.weight", (2048, 3072), Q4), (b + "attn_kv_a_mqa.weight", (2048, 576), Q4),
            (b + "attn_kv_a_norm.weight", (512,), F32), (b + "attn_kv_b.weight", (512, 4096), Q4),
            (b + "attn_output.weight", (2048, 2048), Q4),
        ]  # fmt: skip
        if i == 0:
            found += [(f"{b}ffn_{p}.weight", (2048, 10944), Q4) for p in ("gate", "up")]
            found += [(b + "ffn_down.weight", (10944, 2048), down)]
            continue
        found += [(b + "ffn_gate_inp.weight", (2048, 64), F32)]
        found += [(f"{b}ffn_{p}_exps.weight", (2048, 1408, 64), Q4) for p in ("gate", "up")]
        found += [(b + "ffn_down_exps.weight", (1408, 2048, 64), down)]
        found += [(f"{b}ffn_{p}_shexp.weight", (2048, 2816), Q4) for p in ("gate", "up")]
        found += [(b + "ffn_down_shexp.weight", (2816, 2048), Q6 if more(i, 27) else Q4)]
    return "deepseek2", fields, [*found, ("output_norm.weight", (2048,), F32), ("output.weight", (2048, 102400), Q6)]


def qwen3_30b_a3b() -> tuple[str, dict[str, Any], Tensors]:
    fields = {
        ".block_count": 48, ".embedding_length": 2048, ".attention.head_count": 32, ".attention.head_count_kv": 4,
        ".attention.key_length": 128, ".attention.value_length": 128, ".expert_count": 128, ".expert_used_count": 8,
        "general.file_type": 15,
    }  # fmt: skip
    found = [("token_embd.weight", (2048, 151936), Q4)]
    for i in range(48):
        b, up = f"blk.{i}.", Q6 if more(i, 48) else Q4
        found += [
            (b + "attn_norm.weight", (2048,), F32), (b + "ffn_norm.weight", (2048,), F32),
            (b + "attn_q_norm.weight", (128,), F32), (b + "attn_k_norm.weight", (128,), F32),
            (b + "attn_q.weight", (2048, 4096), Q4), (b + "attn_k.weight", (2048, 512), Q4),
            (b + "attn_v.weight", (2048, 512), up), (b + "attn_output.weight", (4096, 2048), Q4),
            (b + "ffn_gate_inp.weight", (2048, 128), F32), (b + "ffn_gate_exps.weight", (2048, 768, 128), Q4),
            (b + "ffn_up_exps.weight", (2048, 768, 128), Q4), (b + "ffn_down_exps.weight", (768, 2048, 128), up),
        ]  # fmt: skip
    return "qwen3moe", fields, [*found, ("output_norm.weight", (2048,), F32), ("output.weight", (2048, 151936), Q6)]


def mixtral_8x7b() -> tuple[str, dict[str, Any], Tensors]:
    fields = {
        ".block_count": 32, ".embedding_length": 4096, ".attention.head_count": 32, ".attention.head_count_kv": 8,
        ".expert_count": 8, ".expert_used_count": 2, "general.file_type": 15,
    }  # fmt: skip
    found = [("token_embd.weight", (4096, 32000), Q4)]
    for i in range(32):
        b, up = f"blk.{i}.", Q6 if more(i, 32) else Q4
        found += [
            (b + "attn_norm.weight", (4096,), F32), (b + "ffn_norm.weight", (4096,), F32),
            (b + "attn_q.weight", (4096, 4096), Q4), (b + "attn_k.weight", (4096, 1024), Q8),
            (b + "attn_v.weight", (4096, 1024), Q8), (b + "attn_output.weight", (4096, 4096), T.Q5_K),
            (b + "ffn_gate_inp.weight", (4096, 8), F32), (b + "ffn_gate_exps.weight", (4096, 14336, 8), Q4),
            (b + "ffn_up_exps.weight", (4096, 14336, 8), Q4), (b + "ffn_down_exps.weight", (14336, 4096, 8), up),
        ]  # fmt: skip
    return "llama", fields, [*found, ("output_norm.weight", (4096,), F32), ("output.weight", (4096, 32000), Q6)]


def gpt_oss_20b() -> tuple[str, dict[str, Any], Tensors]:
    fields = {
        ".block_count": 24, ".embedding_length": 2880, ".attention.head_count": 64, ".attention.head_count_kv": 8,
        ".attention.key_length": 64, ".attention.value_length": 64, ".attention.sliding_window": 128,
        ".expert_count": 32, ".expert_used_count": 4, "general.file_type": 38,
    }  # fmt: skip
    found = [("token_embd.weight", (2880, 201088), Q8)]
    for i in range(24):
        b = f"blk.{i}."
        found += [
            (b + "attn_norm.weight", (2880,), F32), (b + "post_attention_norm.weight", (2880,), F32),
            (b + "attn_q.weight", (2880, 4096), Q8), (b + "attn_q.bias", (4096,), F32),
            (b + "attn_k.weight", (2880, 512), Q8), (b + "attn_k.bias", (512,), F32),
            (b + "attn_v.weight", (2880, 512), Q8), (b + "attn_v.bias", (512,), F32),
            (b + "attn_output.weight", (4096, 2880), Q8), (b + "attn_output.bias", (2880,), F32),
            (b + "attn_sinks.weight", (64,), F32),
            (b + "ffn_gate_inp.weight", (2880, 32), F32), (b + "ffn_gate_inp.bias", (32,), F32),
        ]  # fmt: skip
        for p in ("gate", "up", "down"):
            found += [(f"{b}ffn_{p}_exps.weight", (2880, 2880, 32), MX), (f"{b}ffn_{p}_exps.bias", (2880, 32), F32)]
    return "gpt-oss", fields, [*found, ("output_norm.weight", (2880,), F32), ("output.weight", (2880, 201088), Q8)]


REAL = {
    "deepseek-v2-lite": deepseek_v2_lite,
    "qwen3-30b-a3b": qwen3_30b_a3b,
    "mixtral-8x7b": mixtral_8x7b,
    "gpt-oss-20b": gpt_oss_20b,
}
