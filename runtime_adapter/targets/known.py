"""The targets by name."""

from __future__ import annotations

from profiles.errors import TargetError
from runtime_adapter.targets import accelerate, ktransformers, plan_document, sglang_kt
from runtime_adapter.targets.llama_cpp.target import IK_LLAMA_CPP, LLAMA_CPP
from runtime_adapter.targets.target import Target

TARGETS: dict[str, Target] = {
    "ktransformers": ktransformers,
    "llama.cpp": LLAMA_CPP,
    "ik_llama.cpp": IK_LLAMA_CPP,
    "accelerate": accelerate,
    "sglang-kt": sglang_kt,
    "moeplan": plan_document,
}
FILE_NAMES: dict[str, str] = {
    "ktransformers": "ktransformers.yaml",
    "llama.cpp": "llama.cpp.sh",
    "ik_llama.cpp": "ik_llama.cpp.sh",
    "accelerate": "device_map.json",
    "sglang-kt": "sglang-kt.sh",
    "moeplan": "plan.yaml",
}
"""What a file with a target's text is called."""


def target_named(name: str) -> Target:
    """The target of that name. Raises TargetError, which lists all, for another."""
    if name not in TARGETS:
        raise TargetError(f"format: {name!r} is not known; use one of {', '.join(TARGETS)}")
    return TARGETS[name]
