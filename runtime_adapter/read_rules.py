"""A runtime's own text read back as a plan."""

from __future__ import annotations

import re
from collections.abc import Callable

from profiles.model import ModelProfile
from profiles.placement import Placement
from runtime_adapter.targets.known import target_named
from runtime_adapter.targets.ktransformers.formats import as_loaded, weight_formats
from runtime_adapter.targets.target import Outline

_SIGNS = {
    "moeplan": r"^layers\s*:|\"layers\"\s*:",
    "ktransformers": r"^\s*-\s+match\s*:|^\s*match\s*:",
    "sglang-kt": r"--kt-[a-z]|sglang\.launch_server",
    "ik_llama.cpp": r"(?:^|\s)(?:-rtr|-fmoe|-amb|-mla|-sm\s+graph)(?:\s|$)",
    "llama.cpp": r"(?:^|\s)(?:-ot|--override-tensor|-ngl|--n-gpu-layers|--gpu-layers|-ts|--tensor-split|-ncmoe"
    r"|--n-cpu-moe|-cmoe|--cpu-moe)(?:[\s=]|$)|\bllama-(?:server|cli|bench|fit-params)\b",
    "accelerate": r"device_map|^\s*\{",
}
"""What gives a format away, the surest first."""
_LOOKED_AT = 100_000


def read_rules(text: str, format: str, profile: ModelProfile, where: str = "rules") -> Placement:
    """The placement that `text` means for `profile`'s model; `where` (a file name) starts the message of any error.

    `format` is the name of a target ("ktransformers" is a whole rules file, resolved as that runtime does, "moeplan" a
    plan document, …); `guess_format` finds it. What is odd about the text is in the placement's `notes`. Raises
    TargetError for an unknown format, for rules that would not run or that a placement cannot say, ProfileError for a
    document that is no plan.
    """
    return target_named(format).read(text, Outline.of_profile(profile), where)


def as_stored(text: str, format: str, profile: ModelProfile, load: Callable[[str], ModelProfile]) -> ModelProfile:
    """The profile with bytes as the text has them stored: KTransformers' rules choose a weight format by operator.

    `load` gives the same model in another weight format; `profile` says how the CPU's weights are stored.
    """
    if format != "ktransformers":
        return profile
    return as_loaded(profile, weight_formats(text, Outline.of_profile(profile)), load)


def guess_format(text: str) -> str:
    """The target that the text is for, by what only its files have; "moeplan" where nothing gives it away.

    >>> guess_format("llama-server -m x.gguf -ngl 99 --n-cpu-moe 20"), guess_format("- match: {name: ^model$}")
    ('llama.cpp', 'ktransformers')
    """
    start = text[:_LOOKED_AT]
    for name, sign in _SIGNS.items():
        if re.search(sign, start, re.MULTILINE):
            return name
    first = next((line for line in start.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    return "ktransformers" if first.startswith(("- ", "[")) or first == "-" else "moeplan"
