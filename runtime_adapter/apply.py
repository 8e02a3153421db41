"""A plan meets a live model: check everything, move the weights, hook the forward, and undo all of it exactly.

Importing this file does not import torch; calling `apply` does.
"""

from __future__ import annotations

import copy
import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from profiles.errors import ApplyError
from profiles.placement import Placement

if TYPE_CHECKING:
    import torch

    from runtime_adapter.cpu_experts import ExpertEngine
    from runtime_adapter.placing.homes import Homes


@dataclass(eq=False)
class Applied:
    """A plan in force on a model. Leaving the `with` block, or `undo()`, makes the model what it was before.

    `device_map` says where each placed module lives (its children live with it), `moved_bytes` how many bytes of
    weights were copied onto each device; both name the real torch devices and stay readable after `undo()`.
    """

    plan: Placement
    device_map: Mapping[str, str]
    moved_bytes: Mapping[str, int] = field(default_factory=dict)
    _steps_back: list[Callable[[], None]] = field(default_factory=list, repr=False)

    @property
    def active(self) -> bool:
        """True until `undo()` has finished."""
        return bool(self._steps_back)

    def undo(self) -> None:
        """Put back the same Parameter and buffer objects with the same values, and remove every hook.

        Doing it twice does nothing. A step that fails (no memory to copy a weight back) raises ApplyError and stays
        to be done, so a later call goes on from there. Without `keep_host` the values come back from the moved
        copies, so edits made to weights meanwhile survive; with it they are lost.
        """
        while self._steps_back:
            self._steps_back[-1]()
            self._steps_back.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def apply(
    plan: Placement,
    model: torch.nn.Module,
    *,
    engine: str = "torch",
    devices: Mapping[str, torch.device | str] | None = None,
    keep_host: bool = False,
) -> Applied:
    """Move a live transformers causal LM to where `plan` says and make its forward follow.

    A layer lives, computes and keeps its KV cache on its attention device; only routed experts may be elsewhere, all
    of a layer's or some of them, and are computed there: hidden states travel, weights never do. A GPU's part of them
    and the CPU's are computed side by side. Logits come back to the device of the input ids.
    `model` is changed in place until `undo()`; gradients and optimizers made before do not follow the moved copies.

    `engine` computes the experts on the CPU: "torch" with transformers' own kernels, as the model's config names them,
    or another of `runtime_adapter.cpu_experts.ENGINES` (docs/cpu_experts.md), some of which round otherwise and hold
    weights in their own form until `undo()`. `devices` maps the plan's device names to torch devices; a name left out
    means itself. Several names may map to one device. `keep_host` keeps the original tensors of what moves, so that
    undoing copies nothing; otherwise each is freed as soon as its copy exists, unless its storage is shared.

    Raises ApplyError, with the model as it was, when the plan does not fit the model, a device does not exist, the
    model is already applied, dispatched or not fully loaded, split experts are of a kind that cannot be divided, or
    memory runs out half way; also when the engine is not here or cannot compute the experts.
    """
    if importlib.util.find_spec("torch") is None:
        raise ApplyError("apply: torch is not installed; install moeplan[torch]")
    from runtime_adapter.placing.preflight import check

    maker = None if engine == "torch" else _engine(engine)
    homes = check(plan, model, devices or {}, keep_host)
    applied = Applied(plan, {name: str(device) for name, device in homes.device_map.items()})
    try:
        _carry_out(homes, applied, keep_host)
        if maker is not None:
            for experts in _on_cpu(homes):
                _compute_with(maker(experts), experts, applied._steps_back)
    except ApplyError as problem:
        problem.__traceback__ = None  # its frames hold the copies that undo() is about to free
        applied.undo()
        raise
    except BaseException:
        applied.undo()
        raise
    return applied


def _carry_out(homes: Homes, applied: Applied, keep_host: bool) -> None:
    """Move, hook and announce, leaving in `applied` how to undo whatever was done, also when this raises."""
    from runtime_adapter.placing.hooks import hook_forward
    from runtime_adapter.placing.split_experts import divide
    from runtime_adapter.placing.weights import move_weights

    moved: Counter[str] = Counter()
    applied.moved_bytes = moved
    names = {id(module): name for name, module, _ in homes.modules}
    for experts, parts in zip(homes.anatomy.experts, homes.parts, strict=True):
        if experts is not None and parts is not None:
            moved.update(divide(experts, parts, names[id(experts)], keep_host, applied._steps_back))
    moved.update(move_weights(homes.modules, keep_host, applied._steps_back))
    hook_forward(homes, applied._steps_back)
    _keep_cpu_kernels(homes, applied._steps_back)
    _announce(homes.anatomy.model, dict(applied.device_map), applied._steps_back)


def _engine(name: str) -> Callable[[torch.nn.Module], ExpertEngine]:
    from runtime_adapter.cpu_experts import engine_of

    return engine_of(name)


def _on_cpu(homes: Homes) -> list[torch.nn.Module]:
    """The experts modules, and parts of divided ones, that are on the CPU."""
    whole = [m for m, d in zip(homes.anatomy.experts, homes.experts, strict=True) if d is not None and d.type == "cpu"]
    parts = [m._modules.get("cpu") for m, p in zip(homes.anatomy.experts, homes.parts, strict=True) if m and p]
    return [module for module in (*whole, *parts) if module is not None]


def _compute_with(engine: ExpertEngine, experts: torch.nn.Module, steps_back: list[Callable[[], None]]) -> None:
    """From now on `engine` is the module's forward."""
    steps_back.append(engine.close)
    steps_back.append(partial(experts.__dict__.pop, "forward", None))
    experts.__dict__["forward"] = engine


def _keep_cpu_kernels(homes: Homes, steps_back: list[Callable[[], None]]) -> None:
    """Give experts on the CPU a config of their own, so that generate() leaves their kernel alone.

    transformers switches all experts from grouped_mm to batched_mm for decoding when the model's first parameter, the
    embedding, is not on the CPU. That kernel gathers the weights of every chosen expert: on a CPU it took eight times
    as long. The price: set_experts_implementation() does not reach these experts while the plan is applied.
    """
    if homes.embedding.type == "cpu":
        return
    for experts in _on_cpu(homes):
        config = getattr(experts, "config", None)
        if getattr(config, "_experts_implementation", None) == "grouped_mm":
            steps_back.append(partial(setattr, experts, "config", config))
            setattr(experts, "config", copy.copy(config))  # noqa: B010 -- nn.Module declares no such attribute


def _announce(model: torch.nn.Module, device_map: dict[str, str], steps_back: list[Callable[[], None]]) -> None:
    """Set `hf_device_map`: generate() then neither compiles a forward that crosses devices nor makes a cache on one."""
    attributes = model.__dict__
    if "hf_device_map" in attributes:
        steps_back.append(partial(attributes.__setitem__, "hf_device_map", attributes["hf_device_map"]))
    else:
        steps_back.append(partial(attributes.pop, "hf_device_map", None))
    attributes["hf_device_map"] = device_map
