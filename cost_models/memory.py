"""Bytes: what a device may hold and what each block puts there (docs/model.md)."""

from __future__ import annotations

import math
from fractions import Fraction

from cost_models.constants import CPU_SAFETY_MARGIN
from profiles.hardware import Device
from profiles.model import Attention, Block, Experts, ModelProfile, Workspace
from profiles.workload import Workload


def usable_bytes(device: Device, safety_margin: float) -> int:
    """floor(memory * (1 - margin)) - reserved, never below 0; the device's own margin wins over `safety_margin`.

    `safety_margin` is for GPUs; a CPU without a margin of its own keeps `CPU_SAFETY_MARGIN`. Decimal margins are taken
    as written, so 46 GB with 0.10 is 41 400 000 000 exactly.
    """
    default = safety_margin if device.kind == "gpu" else CPU_SAFETY_MARGIN
    margin = default if device.safety_margin is None else device.safety_margin
    return max(0, math.floor(device.memory_bytes * (1 - Fraction(str(margin)))) - device.reserved_bytes)


def kv_bytes(attention: Attention, workload: Workload) -> int:
    """B * C * bytes per token, of which a windowed layer keeps its window only, plus B * state for linear attention."""
    kept = min(workload.context_tokens, attention.kv_window_tokens or workload.context_tokens)
    return workload.batch_size * (kept * attention.kv_bytes_per_token + attention.state_bytes)


def workspace_bytes(block: Block, profile: ModelProfile, workload: Workload) -> int:
    """Transient bytes of one block for a prefill chunk of B * `prefill_chunk` tokens; a device needs its largest, once.

    A profile without `workspace_bytes` gets `default_workspace`.
    """
    need = block.workspace_bytes or default_workspace(block, profile)
    growing = need.per_token * workload.prefill_chunk + need.per_context_token * workload.context_tokens
    return workload.batch_size * (growing + need.per_sequence)


def default_workspace(block: Block, profile: ModelProfile) -> Workspace:
    """A cautious stand-in where shapes are unknown, in hidden vectors of `activation_bytes` a value.

    Attention: eight hidden vectors a token (residual, norm, q, k, v, output, two of the FFN's). Experts: each token is
    gathered once per active expert with float32 router weights, 12 bytes a hidden value (what transformers' grouped
    product was measured to need) beside input and output. Head: logits in 16 and 32 bit, the vocabulary taken from
    the head's bytes.
    """
    vector = profile.hidden_size * profile.activation_bytes
    if isinstance(block, Experts):
        return Workspace(per_token=12 * block.active * profile.hidden_size + 2 * vector)
    if isinstance(block, Attention):
        return Workspace(per_token=8 * vector)
    if block is profile.head:
        vocabulary = max(1, block.weight_bytes.gpu // vector)
        return Workspace(per_token=2 * vector, per_sequence=6 * vocabulary)
    return Workspace(per_token=vector)
