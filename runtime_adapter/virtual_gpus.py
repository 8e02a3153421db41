"""Virtual GPUs: as many as a plan names, with real arithmetic, on a machine without any. For rehearsals and tests.

A `VTensor` says it is on vgpu:i and keeps its bytes in a plain CPU tensor. Every operation runs the CPU kernel on
those, so results are bitwise those of the CPU; operands on different devices raise as on CUDA (tensors without
dimensions and index tensors may stay on the CPU, as there). A `Ledger` counts live bytes by device and bytes copied
between devices, and can cap a device: more than its cap raises torch.OutOfMemoryError, as a full GPU does.

    with ledger(caps={"vgpu:0": 46_000_000_000}) as counted, apply(plan, model, devices=stand_ins(plan)):
        model.generate(...)          # under torch.no_grad()
    counted.peak                     # bytes by device

Inference only, and some ten times slower than the CPU alone. Equality with the CPU shows that tensors are routed and
moved rightly. It says nothing about the numerics of CUDA kernels, streams or pinned memory. The torch interface used
here is experimental: written for torch 2.13.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it

from profiles.device_names import gpu_numbers
from profiles.placement import Placement
from runtime_adapter.fakes.devices import fake_device_type

NAME = fake_device_type()
CPU = torch.device("cpu")
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default, aten._copy_from.default)
SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


def stand_ins(plan: Placement) -> dict[str, str]:
    """A virtual GPU for every GPU of a plan: what `apply` takes as `devices`."""
    return {name: f"{NAME}:{number}" for name, number in gpu_numbers(plan.devices).items()}


class Ledger:
    """Live bytes by device, peaks, and bytes copied by (from, to). `caps` limits a device's live bytes."""

    def __init__(self, caps: Mapping[str, int] | None = None) -> None:
        self.caps = {torch.device(name): limit for name, limit in (caps or {}).items()}
        self.live: Counter[torch.device] = Counter()
        self.peak: Counter[torch.device] = Counter()
        self.copied: Counter[tuple[torch.device, torch.device]] = Counter()
        self._seen: dict[int, weakref.finalize[..., torch.UntypedStorage]] = {}

    def hold(self, storage: torch.UntypedStorage, device: torch.device) -> None:
        """Count a storage until it dies, once however many tensors view it; torch.OutOfMemoryError above the cap."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        cap = self.caps.get(device)
        if cap is not None and self.live[device] + size > cap:
            raise torch.OutOfMemoryError(f"{device} out of memory: {size} more than {self.live[device]} of {cap} bytes")
        self._seen[key] = weakref.finalize(storage, self._release, key, device, size)
        self._seen[key].atexit = False
        self.live[device] += size
        self.peak[device] = max(self.peak[device], self.live[device])

    def _release(self, key: int, device: torch.device, size: int) -> None:
        del self._seen[key]
        self.live[device] -= size

    def copy(self, source: torch.device, target: torch.device, size: int) -> None:
        if source != target:
            self.copied[source, target] += size

    @property
    def live_bytes(self) -> dict[str, int]:
        """Devices that hold anything."""
        return {str(device): size for device, size in self.live.items() if size}


_current = Ledger()


@contextmanager
def ledger(caps: Mapping[str, int] | None = None) -> Iterator[Ledger]:
    """A fresh ledger for the tensors made inside the block."""
    global _current
    before, _current = _current, Ledger(caps)
    try:
        yield _current
    finally:
        _current = before


class VTensor(torch.Tensor):
    """A tensor on a virtual GPU; `elem` is the CPU tensor with its bytes."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem: torch.Tensor, device: torch.device) -> VTensor:
        _current.hold(elem.untyped_storage(), device)
        self: VTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=device,
        )
        self.elem = elem
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"VTensor({self.elem!r}, device='{self.device}')"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return run(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not torch.is_grad_enabled():
            # It picks its kernel by device, above dispatch: take the CPU's choice, whole.
            where = _common_device(func, args, kwargs)
            plain_args, plain_kwargs = _unwrapped((args, kwargs))
            return _wrapped(func(*plain_args, **plain_kwargs), where)
        with torch._C.DisableTorchFunctionSubclass():
            if func == SET_DATA:
                args[0].elem = args[1].elem
            return func(*args, **kwargs)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: check devices, run the CPU kernel, and wrap what comes out."""
    if func in COPIES:
        return _copy(func, args, kwargs)
    if _inplace_view(func):
        raise NotImplementedError(f"vgpu: {func} changes shape or strides in place")
    where = _common_device(func, args, kwargs)
    if kwargs.get("device") is not None:
        where = indexed(kwargs["device"])
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"} | {"device": CPU}
    plain_args, plain_kwargs = _unwrapped((args, kwargs))
    if func is aten.histc.default and not plain_args[0].is_floating_point():
        # CUDA counts integers, the CPU does not; small integers are exact as floats.
        out = func(plain_args[0].float(), *plain_args[1:], **plain_kwargs).to(plain_args[0].dtype)
    else:
        out = func(*plain_args, **plain_kwargs)
    return out if where == CPU else _returned(func, args, kwargs, out, where)


@functools.cache
def _inplace_view(func: Any) -> bool:
    return torch.Tag.inplace_view in func.tags


def indexed(device: torch.device | str) -> torch.device:
    """A bare "vgpu" is vgpu:0."""
    device = torch.device(device)
    return torch.device(NAME, 0) if device.type == NAME and device.index is None else device


def _common_device(func: Any, args: Any, kwargs: Any) -> torch.device:
    """The device of the operands; RuntimeError when they differ by more than CUDA allows."""
    indices: Any = ()
    operands: Any = (args, kwargs)
    if func in INDEXING:
        indices, operands = args[1], (args[0], args[2:], kwargs)
    places = {t.device for t in _tensors(operands) if t.dim() or t.device != CPU}
    places.update(t.device for t in _tensors(indices) if t.device != CPU)
    if len(places) > 1:
        found = " and ".join(sorted(map(str, places)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {found} ({func})")
    return places.pop() if places else CPU


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list, dict)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(item)


def _mapped(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """`tree` with every `kind` in it changed (torch's own pytree does the same, several times slower)."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)([_mapped(item, kind, change) for item in tree])
    if isinstance(tree, dict):
        return {key: _mapped(item, kind, change) for key, item in tree.items()}
    return tree


def _unwrapped(tree: Any) -> Any:
    return _mapped(tree, VTensor, lambda tensor: tensor.elem)


def _wrapped(tree: Any, device: torch.device) -> Any:
    return _mapped(tree, torch.Tensor, lambda tensor: VTensor(tensor, device))


def _returned(func: Any, args: Any, kwargs: dict[str, Any], out: Any, device: torch.device) -> Any:
    """What the caller gets: its own object where the operation wrote into one, else wrapped results."""
    written = _written(func)
    if not any(written):
        return _wrapped(out, device)
    many = isinstance(out, (tuple, list))
    results = []
    for place, item in zip(written, out if many else [out], strict=True):
        if place is None:
            results.append(_wrapped(item, device))
        else:
            position, name = place
            results.append(args[position] if position < len(args) else kwargs[name])
    return type(out)(results) if many else results[0]


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str] | None, ...]:
    """For each result, the argument (position, name) that it is after the operation wrote into it, or None."""
    places: list[tuple[int, str] | None] = []
    for result in func._schema.returns:
        alias, place = result.alias_info, None
        for position, argument in enumerate(func._schema.arguments):
            source = argument.alias_info
            if alias and alias.is_write and source and source.before_set & alias.before_set:
                place = (position, argument.name)
        places.append(place)
    return tuple(places)


def _copy(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The one kind of operation that may cross devices."""
    if func is aten._to_copy.default:
        source = args[0]
        target = indexed(kwargs.get("device") or source.device)
        plain = {key: v for key, v in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
        out = func(_unwrapped(source), **plain)
        _current.copy(source.device, target, out.untyped_storage().nbytes())
        return out if target == CPU else VTensor(out, target)
    destination, source = args[:2] if func is aten.copy_.default else (args[1], args[0])
    aten.copy_.default(_unwrapped(destination), _unwrapped(source))
    _current.copy(source.device, destination.device, destination.numel() * destination.element_size())
    return destination


def _implement(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: run(op, args, kwargs)


def _factories() -> Iterator[tuple[str, Any]]:
    """Operations that take a device and no tensor (empty, arange, …): they never reach `__torch_dispatch__`."""
    for full_name in torch._C._dispatch_get_all_op_names():
        namespace, _, name = full_name.partition("::")
        packet, _, overload = name.partition(".")
        if namespace != "aten" or packet != packet.lower():
            continue
        op = getattr(getattr(aten, packet, None), overload or "default", None)
        arguments = op._schema.arguments if op is not None else []
        takes_tensor = any("Tensor" in str(argument.type) for argument in arguments)
        takes_device = any(argument.name == "device" for argument in arguments)
        known = torch._C._dispatch_has_kernel_for_dispatch_key(full_name, "PrivateUse1")
        if takes_device and not takes_tensor and not known:
            yield name, op


def _register() -> torch.library.Library:
    """Give the device type of fake GPUs its kernels. torch allows that once; importing a module does it once."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name, op in list(_factories()):
        library.impl(name, _implement(op), "PrivateUse1")  # type: ignore[no-untyped-call]
    # torch.tensor(..., device="vgpu:0") copies below the level of subclasses.
    library.impl("_copy_from", _implement(aten._copy_from.default), "PrivateUse1")  # type: ignore[no-untyped-call]
    return library


_LIBRARY = _register()
