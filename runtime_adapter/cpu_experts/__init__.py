"""CPU engines for routed experts: one protocol, found where installed, chosen by measuring (docs/cpu_experts.md).

`engine_of(name)(experts)` makes an engine for one experts module; importing this imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from torch import nn

from profiles.errors import ApplyError
from runtime_adapter.cpu_experts import kt
from runtime_adapter.cpu_experts.choose import EngineTimes, time_engines
from runtime_adapter.cpu_experts.engine import ExpertEngine
from runtime_adapter.cpu_experts.hf import EAGER, TorchExperts
from runtime_adapter.cpu_experts.packed import PackedExperts

__all__ = ["ENGINES", "EngineTimes", "ExpertEngine", "engine_of", "fastest_engine", "missing"]

Maker = Callable[[nn.Module], ExpertEngine]

ENGINES: Mapping[str, Maker] = {
    "torch": TorchExperts,
    "torch-eager": partial(TorchExperts, kernel=EAGER),
    "packed": PackedExperts,
    "packed-int8": partial(PackedExperts, int8=True),
    "kt-kernel": partial(kt.KtExperts, precision="bf16"),
    "kt-kernel-int8": partial(kt.KtExperts, precision="int8"),
    "kt-kernel-int4": partial(kt.KtExperts, precision="int4"),
}


def engine_of(name: str) -> Maker:
    """What makes the engine `name` for an experts module whose weights are on the CPU.

    Raises ApplyError when there is no such engine, or it cannot run on this machine; making one raises ApplyError when
    it cannot compute that module.
    """
    if name not in ENGINES:
        raise ApplyError(f'engine "{name}" is unknown; choose one of {", ".join(ENGINES)}')
    if reason := missing(name):
        raise ApplyError(f'engine "{name}": {reason}')
    return ENGINES[name]


def missing(name: str) -> str | None:
    """Why the engine `name` cannot run on this machine, None if it can."""
    if not name.startswith("kt-kernel"):
        return None
    return kt.missing(name.removeprefix("kt-kernel").removeprefix("-") or "bf16")


def fastest_engine(
    experts: nn.Module, tokens: Sequence[int] = (1, 512), names: Iterable[str] = ENGINES, seconds: float = 1.0
) -> EngineTimes:
    """Time the engines `names` on a live module, for each number of `tokens`; the module is left as it is.

    `str()` of the answer is a table, its `fastest(tokens)` a name. Engines that are not here or cannot compute the
    module are in its `absent`, with the reason. What is timed, and how, is in `time_engines`.
    """
    makers = {name: missing(name) or ENGINES[name] for name in names}
    return time_engines(experts, makers, tokens, seconds)
