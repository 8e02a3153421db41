"""The phases of a dry run: a model on fake tensors reads a prompt and decodes, and a ledger becomes bytes by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from profiles.errors import ApplyError
from runtime_adapter.fakes.devices import Ledger
from runtime_adapter.fakes.live_bytes import DeviceBytes, Phase
from runtime_adapter.meta.errors import one_line


def phases(model: Any, steps: list[tuple[str, int]], batch_size: int, count: Count) -> Iterator[Phase]:
    """Run the steps one after another; `count` says what each held."""

    def forward(tokens: int) -> None:
        ids = torch.zeros((batch_size, tokens), dtype=torch.long, device="cpu")
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    cache, cached = DynamicCache(config=model.config), 0
    for name, tokens in steps:
        cached += tokens
        yield count.phase(name, tokens, cached, cache, partial(forward, tokens))


@dataclass(frozen=True)
class _Slot:
    """The storage of one tensor of a cache."""

    key: int
    device: torch.device
    size: int


_Slots = dict[tuple[object, ...], _Slot]


class Count:
    """Turns a ledger's events into the bytes of each phase, under the names of the plan."""

    def __init__(self, model: Any, ledger: Ledger, names: Mapping[str, str], caps: Mapping[str, int]) -> None:
        self.ledger, self.names = ledger, names
        self.weights, self.buffers = Counter[torch.device](), Counter[torch.device]()
        seen: set[int] = set()
        for tensors, held in ((model.parameters(), self.weights), (model.buffers(), self.buffers)):
            for tensor in tensors:
                if (key := ledger.hold(tensor)) not in seen:
                    held[tensor.device] += tensor.untyped_storage().nbytes()
                seen.add(key)
        ledger.caps = {torch.device(fake): caps[name] for fake, name in names.items() if name in caps}
        for device, size in ledger.live.items():
            name = names[str(device)]
            if size > caps.get(name, size):
                raise ApplyError(f"{name}: the weights take {size} of {caps[name]} bytes; place fewer blocks there")

    def phase(self, name: str, tokens: int, context_tokens: int, cache: Any, forward: Callable[[], object]) -> Phase:
        """What `forward`, which fills `cache`, does. Raises ApplyError, naming the phase, where it fails."""
        before = _slots(cache, self.ledger)
        self.ledger.begin_phase()
        try:
            forward()
        except Exception as problem:  # the forward is foreign code: it may raise anything
            text = one_line(problem)
            for fake, real in self.names.items():
                text = text.replace(fake, real)
            raise ApplyError(f"{name}: {text}; mend the plan") from None
        after = _slots(cache, self.ledger)
        workspace, kv = self._workspace(before, after), Counter[torch.device]()
        for slot in {slot.key: slot for slot in after.values()}.values():
            kv[slot.device] += slot.size
        devices = {
            real: DeviceBytes(self.weights[d], self.buffers[d], kv[d], self.ledger.peak[d], workspace[d])
            for real, d in self._devices()
        }
        moved = {(self.names[str(a)], self.names[str(b)]): n for (a, b), n in self.ledger.moved.items()}
        return Phase(name, tokens, context_tokens, devices, moved)

    def _devices(self) -> list[tuple[str, torch.device]]:
        return [(real, torch.device(fake)) for fake, real in self.names.items()]

    def _workspace(self, before: _Slots, after: _Slots) -> Counter[torch.device]:
        """The most bytes beyond parameters and KV at one moment of the phase, by device."""
        events = self.ledger.events
        kept = {slot.key: place for place, slot in after.items()}
        cached = {slot.key: slot for slot in before.values()}
        now = Counter(self.ledger.live)
        for event in events:
            now[event.device] -= event.size  # back to the beginning
        now -= self.weights
        for slot in cached.values():
            now[slot.device] -= slot.size
        most = Counter(now)
        for event in events:
            is_cached = event.key in cached
            if event.size > 0 and event.key in kept:
                old = before.get(kept[event.key])
                if old is not None and old.key in cached:
                    now[old.device] += cached.pop(old.key).size  # its successor is here
                cached[event.key] = _Slot(event.key, event.device, event.size)
            elif event.size < 0 and is_cached:
                del cached[event.key]
            else:
                now[event.device] += event.size
            most[event.device] = max(most[event.device], now[event.device])
        return most


def _slots(cache: Any, ledger: Ledger) -> _Slots:
    """Every floating-point tensor that a transformers cache holds, by where it holds it."""
    found: _Slots = {}
    for index, layer in enumerate(getattr(cache, "layers", [])):
        for name, value in vars(layer).items():
            items = value if isinstance(value, dict) else dict(enumerate(value if isinstance(value, list) else [value]))
            for key, item in items.items():
                if hasattr(item, "untyped_storage") and item.is_floating_point() and item.numel():
                    size = item.untyped_storage().nbytes()
                    found[index, name, key] = _Slot(ledger.hold(item), item.device, size)
    return found
