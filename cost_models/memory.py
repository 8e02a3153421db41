"""Bytes: what a device may hold and what each block puts there (docs/model.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from cost_models.constants import CPU_SAFETY_MARGIN
from profiles.hardware import Device, Pool
from profiles.model import Attention, Block, Experts, ModelProfile, Workspace
from profiles.workload import Workload


def usable_bytes(device: Device, safety_margin: float) -> int:
    """floor(memory * (1 - margin)) - reserved, never below 0; the device's own margin wins over `safety_margin`. Where
    the device has an absolute `budget_bytes`, just that.

    `safety_margin` is for GPUs; a CPU without a margin of its own keeps `CPU_SAFETY_MARGIN`. Decimal margins are taken
    as written, so 46 GB with 0.10 is 41 400 000 000 exactly.
    """
    if device.budget_bytes is not None:
        return device.budget_bytes
    return max(0, _less(device.memory_bytes, margin_of(device, safety_margin)) - device.reserved_bytes)


def margin_of(device: Device, safety_margin: float) -> float:
    """The device's own margin, or that of its kind."""
    default = safety_margin if device.kind == "gpu" else CPU_SAFETY_MARGIN
    return default if device.safety_margin is None else device.safety_margin


def pool_usable_bytes(pool: Pool, devices: Sequence[Device], safety_margin: float) -> int:
    """What the `devices` that share a pool may use of it in all: floor(memory * (1 - margin)) less what the pool and
    each of them reserve, never below 0.

    Without a margin of its own the pool has the largest of its devices' margins: the system, drivers and fragments of
    all of them are in the same memory. Contexts that the devices' margins cover are paid out of the pool's margin; what
    that does not cover of them all is not usable either, whether the devices are used or not.
    """
    margin = max(margin_of(device, safety_margin) for device in devices)
    left = _less(pool.memory_bytes, margin if pool.safety_margin is None else pool.safety_margin)
    covered = sum(d.context_bytes - context_beyond_margin(d, safety_margin) for d in devices if d.context_bytes)
    reserved = pool.reserved_bytes + sum(device.reserved_bytes for device in devices)
    return max(0, left - reserved - max(0, covered - (pool.memory_bytes - left)))


def _less(n_bytes: int, margin: float) -> int:
    return math.floor(n_bytes * (1 - Fraction(str(margin))))


def context_beyond_margin(device: Device, safety_margin: float) -> int:
    """The part of the device's `context_bytes` that its safety margin does not cover; 0 where it covers all.

    The margin is there for the driver and libraries as well as for fragmentation: counting both in full would hold
    back memory that is free. An absolute budget has no margin, and who says "20 GB of this card" means all that the
    process holds there, as nvidia-smi counts it: under a budget the whole context counts.
    """
    if device.context_bytes is None:
        return 0
    if device.budget_bytes is not None:
        return device.context_bytes
    set_aside = device.memory_bytes - device.reserved_bytes - usable_bytes(device, safety_margin)
    return max(0, device.context_bytes - set_aside)


def growth_bytes(n_bytes: int, share: float) -> int:
    """ceil(n_bytes * share), with the decimal share as written: what weights gain that turn out so much larger."""
    return math.ceil(n_bytes * Fraction(str(share)))


def kept_tokens(block: Block, workload: Workload) -> int:
    """Tokens of a sequence that a layer has cached at most: all C, or what its window leaves of them.

    A windowed layer needs `window` - 1 cached tokens for a chunk and keeps the chunk beside them: transformers because
    its view of the last tokens holds on to the storage of all until the next step, llama.cpp by design. Tokens that are
    generated come one by one, so they need no more than the window. Ignored: llama.cpp rounds up, to 256 tokens.
    """
    context, window = workload.context_tokens, block.kv_window_tokens if isinstance(block, Attention) else None
    if window is None:
        return context
    read = context - workload.generated_tokens
    return max(min(read, window - 1 + workload.prefill_chunk), min(context, window))


def kv_bytes(attention: Attention, workload: Workload) -> int:
    """B * kept tokens * bytes per token, plus B * state for linear attention."""
    kept = kept_tokens(attention, workload)
    return workload.batch_size * (kept * attention.kv_bytes_per_token + attention.state_bytes)


def workspace_bytes(block: Block, profile: ModelProfile, workload: Workload, target: str = "torch") -> int:
    """Transient bytes of one block for a prefill chunk of B * `prefill_chunk` tokens; a device needs its largest, once.

    The largest moment of the block's workspace. Those after the first chunk count where the cache is reserved for more
    than one chunk and the generated tokens. A profile without `workspace_bytes` gets `default_workspace`.
    """
    own = (block.workspace_by_target or {}).get(target)
    need = own or block.workspace_bytes or default_workspace(block, profile)
    one_chunk = workload.prefill_chunk + workload.generated_tokens >= workload.context_tokens
    moments = [moment for moment in need.moments if not (moment.after_first_chunk and one_chunk)]
    return max((_moment_bytes(moment, kept_tokens(block, workload), workload) for moment in moments), default=0)


def _moment_bytes(moment: Workspace, kept: int, workload: Workload) -> int:
    chunk, context = workload.prefill_chunk, workload.context_tokens
    growing = moment.per_token * chunk + moment.per_context_token * kept
    pairs = chunk * (moment.per_token_pair * context + moment.per_window_pair * kept + moment.per_chunk_pair * chunk)
    return workload.batch_size * (growing + pairs + moment.per_sequence)


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
