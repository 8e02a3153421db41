"""Which block a tensor of a GGUF file belongs to, and the bytes of every block as the file stores them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from profiles.errors import ProfileError
from profiles.formats.stored import Stored, StoredExperts, same
from profiles.gguf.header import GgufEntry
from profiles.gguf.metadata import REMEDY, Metadata
from profiles.hf_config.fields import MAX_LAYERS

_EXPERTS = re.compile(r"blk\.[0-9]+\.ffn_(gate_up|gate|up|down)_(ch)?exps\.")
_ONE_EXPERT = re.compile(r"blk\.[0-9]+\.ffn_(gate_up|gate|up|down)\.([0-9]{1,5})\.")
"""Files of early 2024 hold a tensor for every expert."""
_HEAD = re.compile(r"output(_|\.|$)|cls(\.|$)")
_FFN = ("ffn_gate", "ffn_up", "ffn_down", "exp_probs_b")
_ENDS = ("nextn.embed_tokens", "nextn.shared_head")
LOADED_DRAFTS = {
    "cohere2moe": _ENDS, "hy_v3": (*_FFN, *_ENDS), "step35": (*_FFN, *_ENDS, "attn_gate", "attn_q_norm", "attn_k_norm"),
}  # fmt: skip
"""Architectures of which llama.cpp (build 11434) loads these tensors of a block for multi-token prediction unasked."""
EMBEDDING = ("token_embd", "token_types", "position_embd", "per_layer_", "rope_freqs", "rope_factors")


@dataclass(frozen=True)
class Home:
    """Where a tensor belongs: `part` is embedding, head, attention, experts or mtp.

    `projection` is given for routed experts, `expert` where the tensor is one expert's alone.
    """

    part: str
    layer: int = -1
    projection: str = ""
    expert: int | None = None


def layer_counts(fields: Metadata, entries: Iterable[GgufEntry]) -> tuple[int, int]:
    """(decoder layers, multi-token-prediction layers after them).

    `block_count` counts both; which are which is in the metadata, or else seen by the `nextn` tensors of a layer.
    DeepSeek-V4's metadata may promise a block that was left out: then all blocks are decoder layers, as in llama.cpp.
    """
    blocks = fields.size(".block_count", most=MAX_LAYERS)
    seen = {entry.tensor.layer for entry in entries if ".nextn." in entry.tensor.name}
    extra = fields.number(".nextn_predict_layers") or sum(layer is not None and layer < blocks for layer in seen)
    if fields.architecture == "deepseek4" and not seen:
        extra = 0
    if extra >= blocks:
        raise ProfileError(f"{fields.architecture}.nextn_predict_layers: {extra} of {blocks} layers; {REMEDY}")
    return blocks - extra, extra


def home_of(name: str, layer: int | None, layers: int, extra: int) -> Home:
    """The block of the tensor called `name`, of `layer` if it is in one, in a model of `layers` and `extra` more.

    >>> home_of("blk.3.ffn_down_exps.weight", 3, 27, 0)
    Home(part='experts', layer=3, projection='down', expert=None)
    """
    if layer is None:
        return Home("head" if _HEAD.match(name) else "embedding")
    if layer >= layers + extra:
        raise ProfileError(f"tensor {name[:80]}: there is no such layer, the file says {layers + extra}; {REMEDY}")
    if layer >= layers:
        return Home("mtp", layer)
    if match := _EXPERTS.match(name):
        return Home("experts", layer, match[1] + ("_ch" if match[2] else ""))
    if match := _ONE_EXPERT.match(name):
        return Home("experts", layer, match[1], int(match[2]))
    return Home("attention", layer)


def stored_in_file(fields: Metadata, entries: Sequence[GgufEntry], quant: str) -> Stored:
    """Bytes of every block, as the tensors are stored."""
    layers, extra = layer_counts(fields, entries)
    parts = {"embedding": 0, "head": 0, "mtp": 0}
    attention = [0] * layers
    experts = [Counter[tuple[str, int | None]]() for _ in range(layers)]
    token_embedding = output = 0
    odd, unasked = [], 0
    for entry in entries:
        name = entry.tensor.name
        home = home_of(name, entry.tensor.layer, layers, extra)
        if home.part == "attention":
            attention[home.layer] += entry.n_bytes
        elif home.part == "experts":
            experts[home.layer][home.projection, home.expert] += entry.n_bytes
        else:
            parts[home.part] += entry.n_bytes
        if home.part == "mtp" and name.split(".", 2)[2].startswith(LOADED_DRAFTS.get(fields.architecture, ())):
            unasked += entry.n_bytes
        if home.part == "embedding" and not name.startswith(EMBEDDING):
            odd.append(name[:60])
        token_embedding += entry.n_bytes if name == "token_embd.weight" else 0
        output += entry.n_bytes if name == "output.weight" else 0
    tied = 0 if output else token_embedding
    notes = [f"counted with the embedding, as no block is known for them: {', '.join(odd[:5])}"] if odd else []
    if unasked:
        left = f"llama.cpp also loads {unasked} bytes of the multi-token-prediction block on the last GPU"
        notes.append(f"{left}, which are not counted: leave them free")
    return Stored(
        quant=quant,
        embedding=same(parts["embedding"]),
        attention=tuple(same(n) for n in attention),
        experts=tuple(_experts(found) for found in experts),
        head=same(parts["head"] + tied),
        tied_bytes=tied,
        mtp_bytes=parts["mtp"],
        mtp_layers=extra,
        notes=tuple(notes),
    )


def _experts(found: Counter[tuple[str, int | None]]) -> StoredExperts | None:
    if not found:
        return None
    projections, each = Counter[str](), Counter[int]()
    for (projection, expert), n_bytes in found.items():
        projections[projection] += n_bytes
        if expert is not None:
            each[expert] += n_bytes
    differ = len(set(each.values())) > 1 and sum(each.values()) == sum(projections.values())
    single = tuple(each[i] for i in sorted(each)) if differ else None
    return StoredExperts(same(sum(projections.values())), single, projections)
