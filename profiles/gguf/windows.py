"""Which layers of a GGUF model slide, and how far they see: partly in the file, partly in llama.cpp's source.

Facts of llama.cpp build 11434 (src/models/*.cpp: n_swa, set_swa_pattern, load_swa_pattern).
"""

from __future__ import annotations

from dataclasses import dataclass

from profiles.gguf.metadata import Metadata

MAX_WINDOW = 10**9
LAYERS_OF_EXAONE4_32B = 64


@dataclass(frozen=True)
class Slides:
    """Of `every` so many layers one attends to everything, the last or, where `full_first`, the first; 0: none does.

    `tokens` is the window whatever the file says, `default` the window where the file says none.
    """

    every: int
    full_first: bool = False
    tokens: int | None = None
    default: int | None = None


SLIDES = {
    "afmoe": Slides(4),
    "cohere2": Slides(4),
    "cohere2moe": Slides(4, full_first=True),
    "dflash": Slides(0),
    "exaone-moe": Slides(4, default=128),
    "exaone4": Slides(4),
    "gemma2": Slides(2, default=4096),
    "gemma3": Slides(6),
    "gemma3n": Slides(5),
    "gpt-oss": Slides(2),
    "laguna": Slides(4, full_first=True),
    "lfm2": Slides(0),
    "llama4": Slides(4, tokens=8192, default=8192),
    "mellum": Slides(4),
    "muse-glimmer": Slides(4),
    "olmo2": Slides(4),
    "plamo3": Slides(8),
    "smallthinker": Slides(4, full_first=True, tokens=4096),
}
"""Architectures that know which of their layers slide. Others need a list in the file, or attend to everything."""
WHOLE = ("phi3", "phimoe")
"""Architectures whose windows llama.cpp does not use though files have them."""


def windows_of(fields: Metadata, layers: int) -> tuple[list[int | None], tuple[str, ...]]:
    """The window of every layer in tokens, None where it attends to everything; and what was assumed."""
    name, stated = fields.architecture, fields.number(".attention.sliding_window", MAX_WINDOW)
    rule = SLIDES.get(name)
    window = stated
    if rule is not None and stated is None:
        window = rule.default
    elif rule is not None and stated and rule.tokens:
        window = rule.tokens
    if not window or name in WHOLE or (name == "exaone4" and layers != LAYERS_OF_EXAONE4_32B):
        return [None] * layers, ()
    pattern = fields.flags_or_number(".attention.sliding_window_pattern", layers)
    if isinstance(pattern, list):
        return [window if slides else None for slides in pattern], ()
    if rule is None:
        note = f"a window of {window} tokens is in the file but not which layers slide: counted whole"
        return [None] * layers, (note,)
    every = rule.every if pattern is None else pattern
    full = 0 if rule.full_first else every - 1
    return [None if every and i % every == full else window for i in range(layers)], ()
