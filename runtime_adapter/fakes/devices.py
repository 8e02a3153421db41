"""Fake GPUs that hold only shapes: a device type for fake tensors, and the ledger of what would be on each device.

Inside `fake_machine()` every tensor is a fake one: it has a shape, a type and a device, and no memory. Operations on
two devices at once raise, as they do on CUDA. No GPU is needed, and none is touched where there is one.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from profiles.device_names import gpu_numbers

NAME = "vgpu"
MOST_DEVICES = 1024
ATTENTION = torch.nn.functional.scaled_dot_product_attention
aten = torch.ops.aten


class _DeviceModule:
    """torch.<its name>. Not "available", so that nobody looks for kernels and streams of it."""

    def device_count(self) -> int:
        return MOST_DEVICES

    def is_available(self) -> bool:
        return False

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


@functools.cache
def fake_device_type() -> str:
    """The name of the device type that stands for GPUs, registered with torch at the first call.

    torch knows one such type in a process: where somebody already made it, theirs is used.
    """
    name: str = torch._C._get_privateuse1_backend_name()
    if name == "privateuseone":
        register_device_type(NAME)
        return NAME
    return name


def register_device_type(name: str) -> None:
    """Make `name` a device type of this process, with indices but no kernels. torch allows one, once."""
    accelerators = torch._C._acc

    class Guard(accelerators.DeviceGuard):
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    class Hooks(accelerators.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return False

        def has_primary_context(self, device: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    backend_registration._setup_privateuseone_for_python_backend(name, _DeviceModule(), Hooks(), Guard())


@dataclass(frozen=True)
class Event:
    """A storage came (`size` > 0) or went (`size` < 0)."""

    key: int
    device: torch.device
    size: int


class Ledger:
    """Live bytes by device, since `begin_phase()` also peaks, bytes copied, and every event in order.

    Storages are counted, not tensors: views are free, and a view keeps all of its storage. `caps` limits live bytes.
    """

    def __init__(self) -> None:
        self.caps: dict[torch.device, int] = {}
        self.live: Counter[torch.device] = Counter()
        self.peak: Counter[torch.device] = Counter()
        self.moved: Counter[tuple[torch.device, torch.device]] = Counter()
        self.events: list[Event] = []
        self._storages: dict[int, int] = {}
        self._next_key = 0

    def hold(self, tensor: torch.Tensor, reason: object = None) -> int:
        """Count the storage of `tensor` until it dies; returns its key. torch.OutOfMemoryError above a cap."""
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is not None:
            return known
        device, size = tensor.device, storage.nbytes()
        cap = self.caps.get(device)
        if cap is not None and self.live[device] + size > cap:
            raise torch.OutOfMemoryError(
                f"{size} bytes for {reason} do not fit beside {self.live[device]} of {cap} bytes on {device}"
            )
        self._next_key += 1  # an address may be used again, a key is not
        key = self._storages[storage._cdata] = self._next_key
        weakref.finalize(storage, self._release, storage._cdata, key, device, size).atexit = False
        self.live[device] += size
        self.peak[device] = max(self.peak[device], self.live[device])
        self.events.append(Event(key, device, size))
        return key

    def _release(self, address: int, key: int, device: torch.device, size: int) -> None:
        del self._storages[address]
        self.live[device] -= size
        self.events.append(Event(key, device, -size))

    def copied(self, source: torch.device, target: torch.device, size: int) -> None:
        if source != target:
            self.moved[source, target] += size

    def begin_phase(self) -> None:
        self.peak = Counter(self.live)
        self.moved.clear()
        self.events.clear()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells a ledger of every result of an operation, and of bytes copied between devices."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is aten._to_copy.default:
            self.ledger.copied(args[0].device, out.device, out.numel() * out.element_size())
        elif func is aten.copy_.default:
            self.ledger.copied(args[1].device, args[0].device, args[0].numel() * args[0].element_size())
        for tensor in _tensors(out):
            self.ledger.hold(tensor, func)
        return out


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)


class _FusedAttention(TorchFunctionMode):
    """Attention as a fused kernel does it: the output is made, a matrix of scores is not.

    Left to itself, torch would take the kernel without fusion, because no other knows fake GPUs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not ATTENTION:
            return func(*args, **kwargs)
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        query, value = given["query"], given["value"]
        places = {t.device for t in (query, given["key"], value, given.get("attn_mask")) if t is not None}
        if len(places) > 1:
            raise RuntimeError(f"attention over tensors on {' and '.join(sorted(map(str, places)))}")
        # CUDA's fused kernels keep tokens outside heads in memory, so that the transpose that follows copies nothing.
        batch, heads, tokens = query.shape[:3]
        return query.new_empty((batch, tokens, heads, value.shape[-1])).transpose(1, 2)


class _Shapes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Fake tensors that never look for a device, also where torch finds a real GPU."""

    @property
    def avoid_device_init(self) -> bool:
        return True


def fake_names(devices: Iterable[str]) -> dict[str, str]:
    """The fake devices that stand for those of a plan: itself for `cpu`."""
    numbers, kind = gpu_numbers(devices), fake_device_type()
    return {"cpu": "cpu", **{name: f"{kind}:{number}" for name, number in numbers.items()}}


@contextmanager
def fake_machine() -> Iterator[Ledger]:
    """Everything in the block runs on fake tensors, whose bytes the ledger counts."""
    fake_device_type()
    ledger = Ledger()
    with torch.no_grad(), _Shapes(), _Watch(ledger), _FusedAttention():
        yield ledger
