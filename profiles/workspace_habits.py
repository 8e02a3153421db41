"""What code in transformers does that shapes do not tell, by architecture: for the forms in `profiles/workspace.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Habits:
    """What an architecture's code in transformers does that its shapes do not tell.

    `rotated`: the share of a head that is rotated. `fp32_rotation`: how many tensors as large as the queries rotation
    needs in fp32, 0 where it works in activations.
    `dense_copies`: how many tensors of its inner width a dense FFN keeps alive. `fp32_vectors`: how many hidden vectors
    in fp32 live beside the others, where residuals are scaled in it. `score_copies`: how many matrices of scores a head
    has alive, where attention is not fused. `state_chunk`: tokens of a chunk of Mamba-2's scan.
    `every_expert`: each token is given to every expert, with weight zero where not chosen. `idle_windows`: a mask for
    windows is made also where no layer has one. `scaled_embedding`: the embedding's vectors are multiplied into new
    ones. `norm_tensors`: how many fp32 tensors a norm keeps alive.
    """

    rotated: float = 1.0
    fp32_rotation: int = 0
    every_expert: bool = False
    idle_windows: bool = False
    scaled_embedding: bool = False
    norm_tensors: int = 2
    dense_copies: int = 3
    fp32_vectors: int = 0
    score_copies: int = 3
    state_chunk: int = 256


USUAL = Habits()
HABITS = {
    "cohere": Habits(fp32_rotation=6, norm_tensors=3),
    "ernie4_5": Habits(fp32_rotation=4),
    "flex_olmo": Habits(fp32_rotation=4),
    "glm4_moe": Habits(rotated=0.5),
    "gemma": Habits(scaled_embedding=True),
    "granite": Habits(scaled_embedding=True),
    "llama4": Habits(fp32_rotation=3, every_expert=True),
    "mimo_v2": Habits(score_copies=2),
    "minimax_m3": Habits(dense_copies=7),
    "nemotron_h": Habits(state_chunk=128),
    "olmo2": Habits(fp32_rotation=4),
    "olmo3": Habits(fp32_rotation=4),
    "qwen2_moe": Habits(idle_windows=True),
    "zaya": Habits(scaled_embedding=True, fp32_vectors=2),
}
"""By the beginning of the architecture's name, where anything is unusual."""


def habits_of(architecture: str) -> Habits:
    """The habits of an architecture; the usual ones where nothing is known of it."""
    return next((habits for start, habits in HABITS.items() if architecture.startswith(start)), USUAL)
