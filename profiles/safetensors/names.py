"""Which block a tensor of a checkpoint belongs to, from its name.

Names are those of published safetensors files: transformers' modules, the models' own first releases, quantisers'
suffixes (`.weight_scale_inv`, `.qweight`, `_blocks` …) and the prefixes of models that also see or hear.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_ROOT = (
    r"(?:model\.language_model\.model\.|model\.language_model\.|language_model\.model\.|language_model\.|"
    r"thinker\.model\.|thinker\.|model\.|transformer\.|backbone\.|gpt_neox\.)?"
)
"""What stands before the text model's own names: longest first."""
_LAYER = re.compile(rf"({_ROOT})(?:layers|h|blocks)\.([0-9]{{1,6}})\.(.+)", re.DOTALL)
_OUTSIDE = re.compile(rf"{_ROOT}(([^.]+).*)", re.DOTALL)
_EXPERTS = re.compile(
    r"(?:^|\.)(?:experts|switch_mlp|block_sparse_moe(?=\.(?:input|output)_linear))\.(?:([0-9]{1,6})\.)?(.+)", re.DOTALL
)
"""`switch_mlp` is mlx-lm's name for them, and Granite has none. `shared_expert(s)` are others and do not match."""
_PROJECTION = re.compile(
    r"(?:^|[._])(?:(gate_up_proj|up_gate_proj|gate_and_up_proj|gate_up|w13|input_linear)|(gate_proj|w1)"
    r"|(up_proj|w3|v1)|(down_proj|output_linear|w2))(?![a-z0-9])"
)
_PROJECTIONS = ("gate_up", "gate", "up", "down")
EMBEDDING = {"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embeddings", "embed"}
BESIDE_EMBEDDING = {"wpe", "embed_positions", "word_embeddings_layernorm", "rotary_emb", "rotary_pos_emb"}
"""Tables of positions, and buffers that files hold for them: needed before the first layer."""
HEAD = {"lm_head", "output", "embed_out", "head"}
FINAL_NORM = {"norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f"}
MTP = re.compile(r"mtp(?:[._]|$)")
MTP_MARK = "eh_proj."
"""Only layers that predict further tokens have this projection, and a number after those of the model."""
TOWERS = {
    *("vision_tower", "vision_model", "vision_encoder", "vision", "visual", "vit", "image_newline", "view_seperator"),
    *("audio_tower", "audio_model", "audio_encoder", "multi_modal_projector", "mm_projector", "projector", "aligner"),
    *("connector", "patch_merger", "vision_language_adapter", "visual_projector", "pre_mm_projector_norm"),
    *("embed_vision", "embed_audio", "vision_projection", "talker", "code2wav", "token2wav", "img_projector"),
}


class Home(NamedTuple):
    """Where a tensor belongs.

    `part` is "layer", "experts", "embedding", "beside embedding", "lm_head", "head", "mtp", "tower" or "" (unknown).
    `root` is what stands before the layers' names; `expert` is None for a tensor of all experts together; `rest` is
    the name in its layer, or in the model where it is in none.
    """

    part: str
    layer: int = -1
    root: str = ""
    rest: str = ""
    expert: int | None = None
    projection: str = ""


def home_of(name: str) -> Home:
    """The home of the tensor called `name`.

    >>> home_of("model.layers.3.mlp.experts.17.gate_proj.weight_scale_inv")[:3]
    ('experts', 3, 'model.')
    >>> home_of("language_model.model.layers.0.feed_forward.experts.gate_up_proj").projection
    'gate_up'
    >>> home_of("vision_model.model.layers.0.mlp.fc1.weight").part
    'tower'
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        return _outside_layers(name)
    root, layer, rest = match[1], int(match[2]), match[3]
    inner = _EXPERTS.search(rest)
    if inner is None:
        return Home("layer", layer, root, rest)
    expert = None if inner[1] is None else int(inner[1])
    return Home("experts", layer, root, rest, expert, projection_of(inner[2]))


def _outside_layers(name: str) -> Home:
    if not TOWERS.isdisjoint(name.split(".", 3)[:3]):
        return Home("tower")
    match = _OUTSIDE.fullmatch(name)
    rest, first = (match[1], match[2]) if match else (name, name)
    if MTP.match(rest):
        return Home("mtp")
    kinds = {"embedding": EMBEDDING, "beside embedding": BESIDE_EMBEDDING, "lm_head": HEAD, "head": FINAL_NORM}
    return Home(next((part for part, firsts in kinds.items() if first in firsts), ""), rest=rest)


@lru_cache(maxsize=4096)
def projection_of(inside: str) -> str:
    """Which projection of an expert a name within it means; "other" where that is not known.

    >>> projection_of("down_proj_blocks"), projection_of("w3.weight"), projection_of("gate_up_proj_bias")
    ('down', 'up', 'gate_up')
    """
    match = _PROJECTION.search(inside)
    return "other" if match is None or match.lastindex is None else _PROJECTIONS[match.lastindex - 1]
