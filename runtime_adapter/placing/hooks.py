"""Forward hooks that carry what travels: hidden states, masks, positions and rotary tables, never weights.

Hooks before a module come first and hooks after it last among the hooks it has, so that others see its tensors on
its own device. KV caches and everything else that is not a tensor, tuple, list or dict passes through untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runtime_adapter.placing.homes import Homes
from runtime_adapter.placing.hops import hop


def carried(value: Any, carry: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it, however deep in plain tuples, lists and dicts, replaced by `carry(tensor)`."""
    if isinstance(value, Tensor):
        return carry(value)
    if type(value) in (tuple, list):
        return type(value)([carried(item, carry) for item in value])
    if type(value) is dict:
        return {key: carried(item, carry) for key, item in value.items()}
    return value


def is_there(value: Any, device: torch.device) -> bool:
    """Whether nothing in `value` has to move. Between layers Python runs from cold caches: this is looked at first."""
    if isinstance(value, Tensor):
        return value.device == device
    kind = type(value)
    if kind is dict:
        value = value.values()
    elif kind is not tuple and kind is not list:
        return True
    for item in value:  # noqa: SIM110 -- a generator costs more than what it looks at
        if not is_there(item, device):
            return False
    return True


def moved(value: Any, device: torch.device) -> Any:
    """`value` with its tensors on `device`; those already there are the same objects."""
    if is_there(value, device):
        return value
    return carried(value, lambda tensor: hop(tensor, device))


@dataclass(eq=False)
class Shared:
    """Copies of what every layer of one forward is given, so that it crosses once a device, not once a layer.

    Outside a forward nothing is remembered. Entries hold their source, so that an id means one tensor while it counts.
    """

    open: bool = False
    copies: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def moved(self, value: Any, device: torch.device) -> Any:
        return carried(value, lambda tensor: self._moved(tensor, device))

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        if tensor.device == device or not self.open:
            return hop(tensor, device)
        known = self.copies.get((id(tensor), device))
        if known is None:
            known = self.copies[id(tensor), device] = (tensor, hop(tensor, device))
        return known[1]

    def reset(self, is_open: bool) -> None:
        self.open = is_open
        self.copies.clear()


class PlanHook:
    """Base of the hooks of an applied plan, by which such a model is recognised."""


@dataclass(frozen=True)
class Bring(PlanHook):
    """Before a module: all it is given comes to `device`."""

    device: torch.device

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return moved(args, self.device), moved(kwargs, self.device)


@dataclass(frozen=True)
class OpenForward(Bring):
    """Before the base model: as `Bring`, and what layers share is remembered from here on."""

    shared: Shared

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self.shared.reset(is_open=True)
        return super().__call__(module, args, kwargs)


@dataclass(frozen=True)
class CloseForward(PlanHook):
    """After the base model, also when it raised: forget what the layers shared."""

    shared: Shared

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.shared.reset(is_open=False)


@dataclass(frozen=True)
class EnterLayer(PlanHook):
    """Before a layer: hidden states come to `device`; masks, positions and rotary tables through `shared`."""

    device: torch.device
    shared: Shared

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if is_there(args, self.device) and is_there(kwargs, self.device):
            return args, kwargs
        # Hidden states are new in every layer: remembering them would only hold their memory.
        travel = {key: value for key, value in kwargs.items() if key == "hidden_states"}
        common = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        return moved(args, self.device), self.shared.moved(common, self.device) | moved(travel, self.device)


@dataclass(frozen=True)
class SendBack(PlanHook):
    """After a module that lives elsewhere: its output goes back to the layer's `device`."""

    device: torch.device

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return moved(output, self.device)


@dataclass(frozen=True)
class MeetLogits(PlanHook):
    """Before the causal LM: what its head works with comes to the head's `device`; ids go on as they are."""

    device: torch.device

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return args, {k: moved(v, self.device) if k in ("labels", "logits_to_keep") else v for k, v in kwargs.items()}


@dataclass(frozen=True)
class SendLogitsHome(PlanHook):
    """After the causal LM: logits and losses go to the device of the ids or embeddings that it was given.

    Only tensors at the top of the output: hidden states, attentions and router logits stay where they were made.
    """

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        home = next((value.device for value in given if isinstance(value, Tensor)), None)
        if home is None:
            return output
        if isinstance(output, tuple):
            return tuple(hop(item, home) if isinstance(item, Tensor) else item for item in output)
        for key, value in output.items():
            if isinstance(value, Tensor):
                output[key] = hop(value, home)
        return output


def hook_forward(homes: Homes, steps_back: list[Callable[[], None]]) -> None:
    """Register the hooks that make the forward follow `homes`; `steps_back` gets the removal of each."""
    anatomy, shared = homes.anatomy, Shared()

    def before(module: nn.Module, hook: Callable[..., Any]) -> None:
        handle = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        steps_back.append(handle.remove)

    def after(module: nn.Module, hook: Callable[..., Any], **how: bool) -> None:
        steps_back.append(module.register_forward_hook(hook, **how).remove)

    before(anatomy.model, MeetLogits(homes.head))
    after(anatomy.model, SendLogitsHome(), with_kwargs=True)
    before(anatomy.base, OpenForward(homes.embedding, shared))
    after(anatomy.base, CloseForward(shared), always_call=True)
    for layer, home, experts, away in zip(anatomy.layers, homes.attention, anatomy.experts, homes.experts, strict=True):
        before(layer, EnterLayer(home, shared))
        if experts is not None and away is not None and away != home:
            before(experts, Bring(away))
            after(experts, SendBack(home))
    before(anatomy.norm, Bring(homes.head))
