"""A layer's experts on several devices: the fused module divided by expert id, and a forward that runs the parts.

A token and one expert that it chose are a *pair*. Each pair is computed where its expert is, as a row of its own, and
comes back as a row; what the token gets is then summed where the residual lives, in the order in which the undivided
module would have summed. So a split changes no bit of the result, and a part that no token chose does no work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from profiles.errors import ApplyError
from runtime_adapter.anatomy import expert_count
from runtime_adapter.placing.hops import hop

Parts = Mapping[torch.device, tuple[int, ...]]
"""Expert ids by device, ascending; all of a layer's experts, each once."""


def is_divisible(experts: nn.Module) -> bool:
    """Whether `experts` takes hidden states, expert ids and routing weights, as those of transformers do that can
    switch kernels. Llama 4's take one row a token and expert instead, whichever were chosen."""
    return hasattr(experts, "_apply_gate") and hasattr(getattr(experts, "config", None), "_experts_implementation")


@dataclass(frozen=True)
class Part:
    """Some of a layer's experts on one device. `module` computes them, under their numbers within the part."""

    device: torch.device
    ids: tuple[int, ...]
    module: nn.Module


class SplitForward:
    """A divided module's forward: states [tokens, hidden], ids and weights [tokens, k] to [tokens, hidden].

    What goes to the CPU is fetched first, then the GPUs are given their rows, whose launches return at once, and the
    CPU computes its own meanwhile. Ids outside the module's experts add nothing, as in the undivided one.
    """

    def __init__(self, experts: nn.Module, parts: Sequence[Part]) -> None:
        count = sum(len(part.ids) for part in parts)
        self.experts = experts
        self.parts = sorted(parts, key=lambda part: part.device.type != "cpu")
        self.owner, self.local = torch.full((count + 1,), -1), torch.zeros(count + 1, dtype=torch.long)
        for number, part in enumerate(self.parts):
            ids = torch.tensor(part.ids)
            self.owner[ids], self.local[ids] = number, torch.arange(len(part.ids))

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        k, home = top_k_index.shape[-1], hidden.device
        eager = self.experts.config._experts_implementation == "eager"  # type: ignore[union-attr]
        work = [
            (part, pairs, self._rows(part, hidden, pairs // k), hop(local, part.device))
            for part, pairs, local in self._pairs(top_k_index.reshape(-1, k), slot_by_slot=eager)
        ]
        slots = hidden.new_zeros((top_k_index.numel(), hidden.shape[-1]))
        while work:  # the last is the CPU's
            part, pairs, rows, ids = work.pop()
            slots.index_copy_(0, hop(pairs, home), hop(_computed(part, rows, ids), home))
        weighted = (slots * top_k_weights.reshape(-1, 1)).view(-1, k, hidden.shape[-1])
        if eager:
            total = _summed_by_expert(weighted.to(hidden.dtype), top_k_index.reshape(-1, k))
        else:
            total = weighted.sum(dim=1).to(hidden.dtype)
        return total.view(hidden_states.shape)

    def _pairs(self, index: Tensor, slot_by_slot: bool) -> list[tuple[Part, Tensor, Tensor]]:
        """(part, pairs, their experts' numbers in it) of each part that is hit, on the CPU. Pair i is slot i % k of
        token i // k; `slot_by_slot` lists all first slots first, as the loop over experts does."""
        tokens, k = index.shape
        if torch._guards.detect_fake_mode() is not None:
            return self._expected_pairs(tokens * k)
        chosen = hop(index, torch.device("cpu")).clamp(-1, len(self.owner) - 1)
        order = torch.arange(tokens * k)
        if slot_by_slot:
            order = order.view(tokens, k).T.reshape(-1)
        chosen = chosen.reshape(-1)[order]
        owner, local = self.owner[chosen], self.local[chosen]
        hits = [(part, owner == number) for number, part in enumerate(self.parts)]
        return [(part, order[hit], local[hit, None]) for part, hit in hits if bool(hit.any())]

    def _expected_pairs(self, count: int) -> list[tuple[Part, Tensor, Tensor]]:
        """For fake tensors, which hold no ids: every expert is chosen as often as every other, rounded up."""
        total = len(self.owner) - 1
        shares = [-(-count * len(part.ids) // total) for part in self.parts]
        empty = partial(torch.empty, dtype=torch.long, device="cpu")
        return [(part, empty((n,)), empty((n, 1))) for part, n in zip(self.parts, shares, strict=True)]

    @staticmethod
    def _rows(part: Part, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The tokens' hidden states on the part's device. Whichever is less travels: all states once, or the rows."""
        if len(tokens) < len(hidden):
            return hop(hidden.index_select(0, hop(tokens, hidden.device)), part.device)
        return hop(hidden, part.device).index_select(0, hop(tokens, part.device))


def _computed(part: Part, rows: Tensor, ids: Tensor) -> Tensor:
    """Each row through its one expert. Weights are one: the caller's follow, at the precision that they have."""
    computed: Tensor = part.module(rows, ids, rows.new_ones(ids.shape))
    return computed


def _summed_by_expert(slots: Tensor, index: Tensor) -> Tensor:
    """The sum over slots in the order of their experts' ids, rounding after each: what the loop over experts does."""
    order = index.argsort(dim=1, stable=True)[..., None].expand_as(slots)
    ordered, total = slots.gather(1, order), torch.zeros_like(slots[:, 0])
    for slot in range(slots.shape[1]):
        total = total + ordered[:, slot]
    return total


def divide(
    experts: nn.Module, parts: Parts, name: str, keep_originals: bool, steps_back: list[Callable[[], None]]
) -> dict[str, int]:
    """Put a layer's experts on several devices; returns bytes copied by device, not counting where they were.

    Parts hang in `experts` as children named as their devices, in place of its parameters. `steps_back` gets what
    undoes each change, before it is made: call from the last to the first; each may be called twice. Unless
    `keep_originals`, each original is emptied as soon as its copies exist. Raises ApplyError where a copy fails.
    """
    made = {device: _empty_twin(experts, device, len(ids)) for device, ids in parts.items()}
    moved: dict[str, int] = {}
    count = expert_count(experts)
    for key, tensor in experts._parameters.items():
        if tensor is None:
            continue
        divided = tensor.shape[0] == count
        copies = {
            device: _rows_on(tensor, ids if divided else None, device, f"{name}.{key}") for device, ids in parts.items()
        }
        for device, rows in copies.items():
            made[device]._parameters[key] = nn.Parameter(rows, requires_grad=tensor.requires_grad)
            if device != tensor.device:
                moved[str(device)] = moved.get(str(device), 0) + rows.numel() * rows.element_size()
        if divided and not keep_originals:
            steps_back.append(partial(_refill, tensor, copies, parts, tensor.device, tensor.shape))
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    _hang(experts, [Part(device, parts[device], twin) for device, twin in made.items()], steps_back)
    return moved


def _empty_twin(experts: nn.Module, device: torch.device, count: int) -> nn.Module:
    """A shallow copy of the module for `count` experts, without parameters and hooks; its children are copied."""
    twin: nn.Module = object.__new__(type(experts))
    twin.__dict__ = dict(experts.__dict__)
    for table in ("_parameters", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        twin.__dict__[table] = type(experts.__dict__[table])()
    twin.__dict__["_modules"] = {
        key: copy.deepcopy(child).to(device) for key, child in experts._modules.items() if child
    }
    twin.__dict__["num_experts"] = count
    twin.__dict__["_buffers"] = {key: b if b is None else b.to(device) for key, b in experts._buffers.items()}
    return twin


def _rows_on(tensor: Tensor, ids: tuple[int, ...] | None, device: torch.device, name: str) -> Tensor:
    """A copy of some rows of `tensor`, or of all of it, run by run: nothing is gathered on the way."""
    shape = tensor.shape if ids is None else (len(ids), *tensor.shape[1:])
    try:
        with torch.inference_mode(False), torch.no_grad():
            rows = torch.empty(shape, dtype=tensor.dtype, device=device)
            runs = [] if isinstance(tensor, FakeTensor) else _runs(range(tensor.shape[0]) if ids is None else ids)
            for start, first, count in runs:
                rows[start : start + count].copy_(tensor.detach()[first : first + count])
            return rows
    except RuntimeError as problem:  # torch.OutOfMemoryError is one
        reason = str(problem).splitlines()[0][:200]
    size = tensor[0].numel() * tensor.element_size() * shape[0]
    raise ApplyError(
        f"{name}: {size} bytes cannot be moved to {device} ({reason}); free memory there, or plan with a "
        "larger safety_margin"
    )


def _runs(ids: Sequence[int]) -> list[tuple[int, int, int]]:
    """(position, first id, length) of each run of ids that follow each other."""
    starts = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1] + 1]
    ends = [*starts[1:], len(ids)]
    return [(start, ids[start], end - start) for start, end in zip(starts, ends, strict=True)]


def _refill(
    original: Tensor, copies: Mapping[torch.device, Tensor], parts: Parts, home: torch.device, shape: torch.Size
) -> None:
    """Give an emptied original its rows back. Does nothing when it is not empty."""
    if original.shape == shape:
        return
    try:
        with torch.inference_mode(False), torch.no_grad():
            data = torch.empty(shape, dtype=original.dtype, device=home)
            for device, ids in parts.items():
                for start, first, count in _runs(ids):
                    data[first : first + count].copy_(copies[device][start : start + count])
            original.data = data
        return
    except RuntimeError as problem:
        reason = str(problem).splitlines()[0][:200]
    raise ApplyError(f"undo: experts cannot be moved back to {home} ({reason}); free memory there and undo() again")


def _hang(experts: nn.Module, parts: Sequence[Part], steps_back: list[Callable[[], None]]) -> None:
    """Parts as children in place of parameters, and a forward that runs them."""
    attributes = experts.__dict__
    for key in ("_parameters", "_modules"):
        steps_back.append(partial(attributes.__setitem__, key, attributes[key]))
    attributes["_parameters"] = {}
    attributes["_modules"] = {**experts._modules, **{str(part.device): part.module for part in parts}}
    steps_back.append(partial(attributes.pop, "forward", None))
    attributes["forward"] = SplitForward(experts, parts)
