"""Everything that can be known to fail is found here, before the first byte moves. Nothing here changes the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from profiles.device_names import ALLOWED, DEVICE_NAME
from profiles.errors import ApplyError
from profiles.placement import LayerPlacement, Placement
from runtime_adapter.anatomy import Anatomy, anatomy_of, expert_count
from runtime_adapter.placing.free_memory import check_room
from runtime_adapter.placing.homes import Homes, homes_of
from runtime_adapter.placing.hooks import PlanHook
from runtime_adapter.placing.split_experts import is_divisible


def check(
    plan: Placement, model: nn.Module, devices: Mapping[str, torch.device | str], keep_originals: bool = False
) -> Homes:
    """Decide where every module of `model` goes under `plan`; raises ApplyError with the reason when it cannot be."""
    if not isinstance(plan, Placement):
        raise ApplyError(f"plan: expected a Placement, got {type(plan).__name__}; read one with Placement.from_dict")
    if isinstance(model, nn.Module):
        _check_untouched(model)
    anatomy = anatomy_of(model)
    check_layers(plan, anatomy)
    _check_tensors(model)
    real = real_devices(plan, devices)
    homes = homes_of(plan, anatomy, real)
    check_shared_modules(homes)
    check_room(homes, keep_originals)
    return homes


def _check_untouched(model: nn.Module) -> None:
    for name, module in model.named_modules():
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if any(isinstance(hook, PlanHook) for hook in hooks):
            raise ApplyError(
                f"{name or type(model).__name__}: a plan is already applied to this model; undo() it first"
            )
        if hasattr(module, "_hf_hook"):
            raise ApplyError(
                f"{name or type(model).__name__}: accelerate already dispatched this model; load it without device_map"
            )


def check_layers(plan: Placement, anatomy: Anatomy) -> None:
    if len(plan.layers) != len(anatomy.layers):
        raise ApplyError(
            f"layers: the plan has {len(plan.layers)}, {type(anatomy.model).__name__} has {len(anatomy.layers)}; "
            "plan for this model"
        )
    for i, (layer, experts) in enumerate(zip(plan.layers, anatomy.experts, strict=True)):
        if experts is None and layer.experts:
            raise ApplyError(f"layers[{i}]: dense in the model, but the plan places experts; plan for this model")
        if experts is not None and not layer.experts:
            raise ApplyError(f"layers[{i}]: has experts in the model, but none in the plan; plan for this model")
        if experts is not None and layer.experts_device is None:
            _check_split(layer, experts, f"layers[{i}].experts")


def _check_split(layer: LayerPlacement, experts: nn.Module, where: str) -> None:
    """That every expert is on one device, and that the module can be divided where these are several."""
    count = expert_count(experts)
    ids = sorted(i for here in layer.experts.values() if here != "all" for i in here)
    stray = [i for i in ids if i >= count]
    if stray:
        raise ApplyError(f"{where}: expert {stray[0]} of a layer with {count}; plan for this model")
    if len(ids) < count:
        lost = next(i for i in range(count) if i not in set(ids))
        raise ApplyError(f"{where}: {count - len(ids)} of {count} are on no device, first {lost}; place each once")
    if len(layer.experts) > 1 and not is_divisible(experts):
        raise ApplyError(
            f"{where}: split over {', '.join(layer.experts)}, but {type(experts).__name__} cannot be divided; solve "
            "with granularity='module'"
        )


def _check_tensors(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "meta":
            raise ApplyError(f"{name}: is on the meta device, without values; load the weights before applying a plan")
        kind = type(tensor)
        if kind is not nn.Parameter and issubclass(kind, nn.Parameter):
            raise ApplyError(f"{name}: is a {kind.__name__}; quantized parameters cannot be moved, load it unquantized")


def real_devices(plan: Placement, devices: Mapping[str, torch.device | str]) -> dict[str, torch.device]:
    """The torch device of every device of the plan, each with its index and tried out by a small allocation."""
    wrong = next((name for name in devices if not DEVICE_NAME.fullmatch(str(name))), None)
    if wrong is not None:
        raise ApplyError(f"devices: {wrong!r} is not a device of a plan; use {ALLOWED}")
    return {name: _existing(name, devices.get(name, name)) for name in sorted(plan.devices)}


def _existing(name: str, wanted: torch.device | str) -> torch.device:
    label = name if str(wanted) == name else f"{name} (mapped to {wanted})"
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as problem:
        raise ApplyError(f"{label}: not a torch device ({_first_line(problem)}); map it to one that exists") from None
    if str(device) != str(wanted):  # torch reads cuda:256 as cuda:0
        raise ApplyError(f"{label}: not a torch device (torch reads {device}); map it to one that exists")
    if device.type == "meta":
        raise ApplyError(f"{label}: the meta device computes nothing; map it to a real device")
    if device.type == "cuda" and torch._guards.detect_fake_mode() is None:  # fake tensors need no GPU
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ApplyError(f"{label}: this machine has {count} CUDA devices; map it with devices={{'{name}': ...}}")
    try:
        return torch.empty(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as problem:  # builds without a backend assert
        reason = _first_line(problem)
    raise ApplyError(f"{label}: cannot be used ({reason}); map it with devices={{'{name}': ...}}")


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]


def check_shared_modules(homes: Homes) -> None:
    first: dict[int, tuple[str, torch.device]] = {}
    for name, module, device in homes.modules:
        other, wanted = first.setdefault(id(module), (name, device))
        if wanted != device:
            raise ApplyError(
                f"{name}: the same module as {other}, but the plan wants {device} and {wanted}; use one device"
            )
