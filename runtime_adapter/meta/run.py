"""One forward pass of a causal LM on torch's meta device: what runs in which order, and what every layer caches.

Nothing is computed and no weight exists; only shapes flow. Routed experts are passed by (their output has the shape of
their input), so no data-dependent routing is met.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

ATTENTION = torch.nn.functional.scaled_dot_product_attention
MATRIX_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm)


@dataclass(frozen=True)
class Held:
    """What one part of a cache (a layer's entry) holds: its class, its window if it slides, and its bytes by type."""

    kind: type
    window: int | None
    small_bytes: int
    fp32_bytes: int


@dataclass
class Run:
    """What a forward of `tokens` tokens showed.

    `entered` lists calls in order; `left` says how many calls had begun when a module's first call ended. By the id of
    the outermost module-list entry (a decoder layer) that was running: `held`, the parts of the cache that it filled;
    `pair_flops`, score and value FLOPs for one token with one cached token; `query_values`, its queries for a token.
    `routing_bytes` is the size of one routing weight that a passed-by module was given, by that module's id.
    """

    tokens: int
    entered: list[nn.Module] = field(default_factory=list)
    left: dict[int, int] = field(default_factory=dict)
    cache: Any = None
    held: dict[int, dict[object, Held]] = field(default_factory=dict)
    pair_flops: dict[int, int] = field(default_factory=dict)
    query_values: dict[int, int] = field(default_factory=dict)
    routing_bytes: dict[int, int] = field(default_factory=dict)


class _Products(TorchFunctionMode):
    """Notes the attention products of the decoder layer that is running, and models fused attention by its output."""

    def __init__(self, run: Run, stack: list[int]) -> None:
        super().__init__()
        self.run, self.stack = run, stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            query, value = (args + tuple(kwargs.get(k) for k in ("query", "key", "value")[len(args) :]))[0:3:2]
            heads = query.shape[-3]
            self._note(2 * heads * (query.shape[-1] + value.shape[-1]), heads * query.shape[-1])
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        result = func(*args, **kwargs)
        if func in MATRIX_PRODUCTS and len(args) == 2 and args[0].ndim in (3, 4) and args[1].ndim == args[0].ndim:
            self._note_product(args[0].shape, result.shape)
        return result

    def _note_product(self, left: torch.Size, result: torch.Size) -> None:
        """Scores are (heads, T, size) x (heads, size, T); their product with values sums over T again."""
        square = (self.run.tokens, self.run.tokens)
        heads = result[:-2].numel()
        if tuple(result[-2:]) == square:
            self._note(2 * heads * left[-1], heads * left[-1])
        elif tuple(left[-2:]) == square:
            self._note(2 * heads * result[-1], 0)

    def _note(self, flops: int, query_values: int) -> None:
        for module in self.stack[:1]:
            self.run.pair_flops[module] = self.run.pair_flops.get(module, 0) + flops
            self.run.query_values[module] = self.run.query_values.get(module, 0) + query_values


def forward(model: nn.Module, tokens: int, cache: Any, skipped: list[nn.Module]) -> Run:
    """Run `model` on one prompt of `tokens` tokens; the modules in `skipped` pass shapes on.

    `cache` is an empty cache, or None for a model that insists on making its own. Raises whatever the model raises:
    the caller turns that into one line.
    """
    run, stack = Run(tokens, cache=cache), list[int]()
    key = "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"
    with _hooks(model, run, stack), _passed_by(skipped, run), torch.no_grad(), _Products(run, stack):
        ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
        model(input_ids=ids, use_cache=True, **{key: cache})
    return run


@contextmanager
def _hooks(model: nn.Module, run: Run, stack: list[int]) -> Iterator[None]:
    """Note every call, and after each decoder layer what of the cache is new."""
    entries = {id(entry) for group in outer_lists(model) for entry in group}
    seen: dict[object, Held] = {}

    def enter(module: nn.Module, _: Any, kwargs: dict[str, Any]) -> None:
        run.entered.append(module)
        if run.cache is None:
            run.cache = kwargs.get("past_key_values")
        if id(module) in entries:
            stack.append(id(module))

    def leave(module: nn.Module, *_: Any) -> None:
        run.left.setdefault(id(module), len(run.entered))
        if id(module) in entries:
            stack.pop()
            now = parts_of(run.cache)
            run.held.setdefault(id(module), {}).update({k: part for k, part in now.items() if seen.get(k) != part})
            seen.update(now)

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in model.modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _passed_by(modules: list[nn.Module], run: Run) -> Iterator[None]:
    """Have `modules` return zeros of their input's shape; note the type of the routing weights they are given."""

    def stand_in(module: nn.Module) -> Callable[..., torch.Tensor]:
        def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            given = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.is_floating_point()]
            if given:
                run.routing_bytes[id(module)] = max(a.element_size() for a in given)
            return torch.zeros_like(hidden)

        return forward

    for module in modules:
        module.forward = stand_in(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def outer_lists(model: nn.Module) -> list[nn.ModuleList]:
    """Module lists that are not inside another module list."""
    found: list[nn.ModuleList] = []

    def visit(module: nn.Module) -> None:
        if isinstance(module, nn.ModuleList):
            found.append(module)
            return
        for child in module.children():
            visit(child)

    visit(model)
    return found


def parts_of(cache: Any) -> dict[object, Held]:
    """The parts of a transformers cache that hold anything: its layers, and lists of states beside them."""
    parts: dict[object, Held] = {}
    layers = getattr(cache, "layers", [])
    states = [(name, value) for name, value in vars(cache).items() if isinstance(value, list) and value is not layers]
    for index, layer in enumerate(layers):
        small, wide = _bytes(list(vars(layer).values()))
        if small or wide:
            parts[index] = Held(type(layer), getattr(layer, "sliding_window", None), small, wide)
    for name, values in states:
        for index, value in enumerate(values):
            small, wide = _bytes([value])
            if small or wide:
                parts[name, index] = Held(list, None, small, wide)
    return parts


def _bytes(values: list[Any]) -> tuple[int, int]:
    """Bytes of the floating-point tensors among `values` and one level below: (in 16-bit types, in fp32)."""
    small = wide = 0
    seen: set[int] = set()
    for value in values:
        items = value if isinstance(value, (list, tuple)) else value.values() if isinstance(value, dict) else [value]
        for item in items:
            if isinstance(item, torch.Tensor) and item.is_floating_point() and id(item) not in seen:
                seen.add(id(item))
                if item.dtype == torch.float32:
                    wide += item.numel() * 4
                else:
                    small += item.numel() * item.element_size()
    return small, wide
