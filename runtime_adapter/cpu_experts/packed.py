"""The engines "packed" and "packed-int8": experts in panels, which decode reads at nearly the speed of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from runtime_adapter.cpu_experts import crew
from runtime_adapter.cpu_experts.engine import projections_of
from runtime_adapter.cpu_experts.panels import Int8Panels, Panels

ALONE = 2**15
"""Numbers up to which torch's own operations use one thread."""
IDLE = 0.1
"""Share of the threads' time that may be lost because pieces of work do not divide evenly by them. More and smaller
pieces would lose less, but each costs a fifth of a millisecond."""


class PackedExperts:
    """Takes the module's weights over: the same bytes in another order, and the parameters empty until `close()`.

    While one weight is packed it lies in memory twice; where something else shares a parameter's memory (another
    module, a caller's tensor) that memory stays taken. Biases and the activation are the module's own and stay there.
    With `int8` the weights are held in half the bytes and not exactly; the parameters then stay, since nothing else
    could restore them.
    """

    def __init__(self, experts: nn.Module, int8: bool = False) -> None:
        self.name = "packed-int8" if int8 else "packed"
        self.keeps_parameters = int8
        self.held_bytes = 0
        self._experts, self._projections = experts, projections_of(experts, self.name)
        self._steps_back: list[Callable[[], None]] = []
        try:
            self._inward, self._outward = (
                self._packed(self._projections.inward),
                self._packed(self._projections.outward),
            )
        except BaseException:
            self.close()
            raise

    def _packed(self, name: str) -> Panels:
        weight = self._projections.weight(self._experts, name)
        panels = Panels(weight) if self.name == "packed" else Int8Panels(weight)
        self.held_bytes += panels.held_bytes
        if not self.keeps_parameters:
            parameter = getattr(self._experts, name)
            self._steps_back.append(partial(_restore, parameter, panels, self._projections.transposed))
            parameter.data = torch.empty(0, dtype=parameter.dtype)
        return panels

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As the protocol says. Pairs (token, slot) are put in the order of their experts, and back at the end.

        All that is more than a few numbers is done by the crew: a single parallel operation of torch's own would leave
        its threads spinning for milliseconds on the CPUs that the crew needs.
        """
        with torch.no_grad():
            ids, order = torch.sort(top_k_index.reshape(-1), stable=True)
            call = _Call(hidden_states, top_k_weights, order, order // top_k_index.shape[1], _spans(ids))
            inner = _through(self._inward, call, self._hidden_of(call), self._bias(self._projections.inward))
            active = self._activated(call, inner)
            outer = _through(self._outward, call, active.__getitem__, self._bias(self._projections.outward))
            return self._combined(call, outer)

    def _hidden_of(self, call: _Call) -> Callable[[slice], Tensor]:
        """Makes the hidden states of an expert's pairs, from `spans`."""
        return lambda span: call.hidden_states.index_select(0, call.tokens[span]).to(self._inward.dtype)

    def _activated(self, call: _Call, inner: Tensor) -> Tensor:
        """The module's activation of inner [S, N]."""
        activate = partial(self._projections.activate, self._experts)
        if inner.numel() <= ALONE:
            return activate(inner)
        active = inner.new_empty(len(inner), self._outward.inputs)
        crew.run(
            [partial(lambda span: active[span].copy_(activate(inner[span])), span) for span in call.spans.values()]
        )
        return active

    def _combined(self, call: _Call, outer: Tensor) -> Tensor:
        """Each token's results, weighted and summed -> [T, H]."""
        result, back = torch.empty_like(call.hidden_states), torch.argsort(call.order)
        slots, norm = call.weights.shape[1], getattr(self._experts, "has_post_expert_norm", False)

        def some(first: int, last: int) -> None:
            rows = outer.index_select(0, back[first * slots : last * slots])
            rows = self._experts.post_expert_norm(rows) if norm else rows  # type: ignore[operator]
            weighted = rows.view(last - first, slots, rows.shape[1]) * call.weights[first:last, :, None]
            result[first:last] = weighted.sum(dim=1)

        tokens, step = len(result), max(1, ALONE // max(1, outer.shape[1] * slots))
        if tokens <= step and outer.numel() <= ALONE:  # to wake the crew takes longer
            some(0, tokens)
        else:
            crew.run([partial(some, first, min(first + step, tokens)) for first in range(0, tokens, step)])
        return result

    def _bias(self, name: str) -> Tensor | None:
        bias: Tensor | None = getattr(self._experts, f"{name}_bias") if self._projections.biased else None
        return bias

    def close(self) -> None:
        while self._steps_back:
            self._steps_back[-1]()
            self._steps_back.pop()
        self._inward = self._outward = None  # type: ignore[assignment]
        self.held_bytes = 0


@dataclass(frozen=True)
class _Call:
    """What was asked: S pairs, put by `order` next to those of the same expert (`spans`), and the token of each."""

    hidden_states: Tensor
    weights: Tensor
    order: Tensor
    tokens: Tensor
    spans: Mapping[int, slice]


def _through(panels: Panels, call: _Call, rows: Callable[[slice], Tensor], bias: Tensor | None) -> Tensor:
    """The `rows` [n, K] of every expert's pairs through its weight -> [S, N], in pieces: some panels of one expert."""
    result = call.hidden_states.new_empty(len(call.order), panels.columns, dtype=panels.dtype)
    step = -(-panels.count // pieces_of_each(len(call.spans), crew.size(), panels.count))

    def piece(expert: int, span: slice, first: int) -> None:
        last, out = min(first + step, panels.count), result[span]
        panels.product(expert, first, last, rows(span), out)
        if bias is not None:
            columns = slice(first * panels.width, last * panels.width)
            out[:, columns] += bias[expert, columns]

    crew.run([partial(piece, *of, first) for of in call.spans.items() for first in range(0, panels.count, step)])
    return result


def pieces_of_each(experts: int, threads: int, most: int) -> int:
    """Into how many pieces each of some experts' work is cut, at most `most`, so that few threads idle at the end.

    >>> [pieces_of_each(6, threads, 32) for threads in (1, 2, 4, 8, 16)]
    [1, 1, 2, 4, 5]
    """
    for pieces in range(1, most):
        rounds = -(-pieces * experts // threads)
        if rounds * threads * (1 - IDLE) <= pieces * experts:
            return pieces
    return most


def _spans(ids: Tensor) -> dict[int, slice]:
    """Where each expert's pairs are in the sorted `ids`."""
    experts, counts = torch.unique_consecutive(ids, return_counts=True)
    if len(ids) and int(ids[0]) < 0:  # which would count from the end
        raise IndexError(f"expert id {int(ids[0])} is negative")
    ends = counts.cumsum(0).tolist()
    return {expert: slice(end - n, end) for expert, n, end in zip(experts.tolist(), counts.tolist(), ends, strict=True)}


def _restore(parameter: nn.Parameter, panels: Panels, transposed: bool) -> None:
    weight = panels.weight()
    parameter.data = weight.transpose(1, 2).contiguous() if transposed else weight
