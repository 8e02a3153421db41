"""Which engine suits is measured: time all that run here on a live module, and say how exact each is."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from profiles.errors import ApplyError
from runtime_adapter.anatomy import expert_count
from runtime_adapter.cpu_experts.engine import ExpertEngine, active_of, projections_of
from runtime_adapter.cpu_experts.hf import EAGER, TorchExperts

SAMPLE_BYTES = 2**30
"""Experts up to this size are timed: far more than any cache holds, and soon packed."""


@dataclass(frozen=True)
class EngineTime:
    """Seconds that `engine` took for `tokens` tokens, the least of several runs; `error` is its distance from fp32.

    The distance is |out - fp32| / |fp32| (Euclidean norms) for one token, with the module's own weights.
    """

    engine: str
    tokens: int
    seconds: float
    error: float


@dataclass(frozen=True)
class EngineTimes:
    """What `time_engines` found; `absent` says of every other engine why it did not run. `str()` is a table."""

    times: tuple[EngineTime, ...]
    absent: Mapping[str, str]

    def fastest(self, tokens: int, most_error: float = 0.01) -> str:
        """The fastest engine for `tokens` tokens among those at most `most_error` from fp32; bf16 itself is at 0.005.

        Raises ApplyError when none was timed with so many tokens or is so exact.
        """
        fitting = [time for time in self.times if time.tokens == tokens and time.error <= most_error]
        if not fitting:
            raise ApplyError(f"engines: none was timed with {tokens} tokens at an error of {most_error} or less")
        return min(fitting, key=lambda time: time.seconds).engine

    def __str__(self) -> str:
        lines = [f"{'engine':16}{'tokens':>8}{'ms':>12}{'error':>10}"]
        lines += [f"{t.engine:16}{t.tokens:8}{1e3 * t.seconds:12.2f}{t.error:10.1e}" for t in self.times]
        return "\n".join([*lines, *(f"{name}: {reason}" for name, reason in self.absent.items())])


def time_engines(
    experts: nn.Module,
    makers: Mapping[str, Callable[[nn.Module], ExpertEngine] | str],
    tokens: Sequence[int] = (1, 512),
    seconds: float = 1.0,
) -> EngineTimes:
    """Time every engine of `makers` on the first experts of a live module, which is left as it is.

    A maker that is a string is the reason why that engine is absent. Tokens choose their experts evenly at random. Of a
    module larger than `SAMPLE_BYTES` only so many experts are timed, with as many tokens fewer when each expert serves
    more than one; the time found is then scaled to all tokens. `seconds` bounds the repetitions of each measurement;
    there are at least three.
    """
    shape = Shape.of(experts)
    sample = first_experts(experts, max(shape.active, min(shape.experts, SAMPLE_BYTES // shape.bytes_of_one)))
    timed = Shape.of(sample)
    call, exact = exact_token(sample)
    absent, times = dict[str, str](), list[EngineTime]()
    for name, maker in makers.items():
        if isinstance(maker, str):
            absent[name] = maker
            continue
        try:
            engine = maker(sample)
        except ApplyError as problem:
            absent[name] = str(problem)
            continue
        try:
            error = distance(engine(*call), exact)
            for number in tokens:
                fewer = shape.scaled(number, timed.experts)
                took = _least(engine, partial(timed.call, fewer), seconds)
                times.append(EngineTime(name, number, took * number / fewer, error))
        finally:
            engine.close()
    return EngineTimes(tuple(times), absent)


Call = tuple[Tensor, Tensor, Tensor]
"""Hidden states [T, H], expert ids [T, k] and their weights [T, k]: what an engine is called with."""


@dataclass(frozen=True)
class Shape:
    """What the work of an experts module depends on; `active` is how many experts a token uses."""

    experts: int
    active: int
    hidden: int
    bytes_of_one: int
    dtype: torch.dtype

    @classmethod
    def of(cls, experts: nn.Module) -> Shape:
        projections, count = projections_of(experts, "torch"), expert_count(experts)
        weight = projections.weight(experts, projections.inward)
        held = sum(tensor.numel() * tensor.element_size() for tensor in experts.parameters(recurse=False))
        return cls(count, min(active_of(experts, count), count), weight.shape[2], held // count, weight.dtype)

    def call(self, tokens: int) -> Call:
        """Normal hidden states that choose `active` different experts each, all equally likely."""
        hidden = torch.randn(tokens, self.hidden).to(self.dtype)
        chosen = torch.stack([torch.randperm(self.experts)[: self.active] for _ in range(tokens)])
        return hidden, chosen, torch.rand(tokens, self.active).softmax(dim=1)

    def scaled(self, tokens: int, experts: int) -> int:
        """Tokens that give each of only `experts` experts as much to do, where every one has something to do."""
        return tokens if tokens * self.active <= self.experts else max(1, tokens * experts // self.experts)


def exact_token(experts: nn.Module) -> tuple[Call, Tensor]:
    """A token for as many of the first experts as it uses, and what they make of it in fp32."""
    few = first_experts(experts, Shape.of(experts).active)
    call = Shape.of(few).call(1)
    for name, parameter in few._parameters.items():
        if parameter is not None:
            few._parameters[name] = nn.Parameter(parameter.detach().float(), requires_grad=False)
    return call, TorchExperts(few, EAGER)(call[0].float(), *call[1:])


def distance(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|, of Euclidean norms."""
    return float((found.float() - exact).norm() / exact.norm())


def first_experts(experts: nn.Module, number: int) -> nn.Module:
    """A twin of the module with its first `number` experts, whose parameters are views of the module's."""
    count, twin = expert_count(experts), copy.copy(experts)
    twin.__dict__ = {**experts.__dict__, "num_experts": number}
    twin.__dict__.pop("forward", None)
    twin._parameters = {
        name: nn.Parameter(tensor.detach()[:number], requires_grad=False) if len(tensor) == count else tensor
        for name, tensor in experts._parameters.items()
        if tensor is not None
    }
    return twin


def _least(engine: ExpertEngine, inputs: Callable[[], Call], seconds: float) -> float:
    """The least time of three runs or more, after one that is not counted; each run has other experts."""
    engine(*inputs())
    deadline, took = time.perf_counter() + seconds, list[float]()
    while len(took) < 3 or time.perf_counter() < deadline:
        given = inputs()
        begin = time.perf_counter()
        engine(*given)
        took.append(time.perf_counter() - begin)
    return min(took)
