"""Which choice of experts for the GPU is faster: the sign of published comparisons against the prediction's.

KTransformers' tutorial on scheduling experts has Qwen3-Next-80B on 4 x RTX 4090 with 10 to 90 % of the experts on the
GPUs: spread evenly over the layers (uniform), layer after layer (front-loading), or those used most (frequency).
Neither the frequencies nor how many requests ran at a time are published (one is assumed: without experts on GPUs 53
tokens/s were measured, 60 are predicted), so signs are compared, not sizes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cost_models import CostModel
from profiles import Case, ModelProfile, Placement, Run, Workload, case_of
from profiles.model import Layer
from profiles.placement import LayerPlacement
from solver.evaluate import judge

SWEEP = "kt_expert_ratio"
SOURCE = "https://github.com/kvcache-ai/ktransformers/blob/95009ea6856c/doc/en/kt-kernel/experts-sched-Tutorial.md"
HIT_RATES = ((1 / 8, 0.6), (1 / 4, 0.772), (1 / 2, 0.909), (1.0, 1.0))
"""(share of the experts, share of the tokens' choices that fall on them), the hottest experts first: Qwen3-30B-A3B, as
measured in github.com/harshithkantamneni/moe-speed-of-light (m0707, m0711, m0714). The table's model is another one."""


@dataclass(frozen=True)
class Choices:
    """One row of the table: tokens/s of uniform, front-loading and frequency, as measured and as predicted."""

    share: float
    measured: tuple[float, float, float]
    predicted: tuple[float, float, float]


def choices(runs: Iterable[Run], shares: Iterable[float] | None = None, batch: int = 1) -> list[Choices]:
    """The table's rows with some experts on either side, or those of `shares`, predicted for `batch` requests."""
    table: dict[float, dict[str, Run]] = defaultdict(dict)
    for run in runs:
        if (run.sweep or "").startswith(SWEEP) and run.gpu_expert_share is not None and run.expert_strategy is not None:
            table[run.gpu_expert_share][run.expert_strategy] = run
    wanted = [share for share in sorted(table) if 0 < share < 1] if shares is None else list(shares)
    return [_row(share, table[share], batch) for share in wanted]


def _row(share: float, by_strategy: dict[str, Run], batch: int) -> Choices:
    names = ("uniform", "front-loading", "frequency")
    even, front = (as_one_card(case_of(by_strategy[name])) for name in names[:2])
    skewed = with_hit_rates(even.profile)
    spread, hot = (_tokens_per_s(even, skewed, plan, batch) for plan in (scattered(even.placement), even.placement))
    alike = _tokens_per_s(even, even.profile, even.placement, batch)
    in_front = _tokens_per_s(front, front.profile, front.placement, batch)
    speeds = [by_strategy[name].total_tokens_per_s for name in names]
    # How much faster the hottest are than any others, under the skew; beside it the model without a skew.
    return Choices(share, tuple(speed or 0.0 for speed in speeds), (alike, in_front, alike * hot / spread))  # type: ignore[arg-type]


def _tokens_per_s(case: Case, profile: ModelProfile, plan: Placement, batch: int) -> float:
    costs = CostModel(profile, case.hardware, Workload(batch_size=batch), target="sglang-kt")
    return judge(plan, costs).prediction.tokens_per_s


def as_one_card(case: Case) -> Case:
    """Tensor-parallel cards share the work of the first: one card, so many times as fast. Ignored: all-reduces."""
    devices = [
        device.replace(
            bandwidth_bytes_per_s=device.bandwidth_bytes_per_s * case.tensor_parallel,
            flops_per_s={kind: rate * case.tensor_parallel for kind, rate in device.flops_per_s.items()},
        )
        if device.kind == "gpu"
        else device
        for device in case.hardware.devices
    ]
    return case.replace(hardware=case.hardware.replace(devices=devices))


def with_hit_rates(profile: ModelProfile, rates: Iterable[tuple[float, float]] = HIT_RATES) -> ModelProfile:
    """Every layer's experts used as often as `rates` say, the hottest first, those of one class equally."""
    ends = list(rates)

    def skewed(layer: Layer) -> Layer:
        experts = layer.experts
        if experts is None:
            return layer
        found: list[float] = []
        so_far = 0.0
        for share, hit in ends:
            n = round(share * experts.count) - len(found)
            found += [min(1.0, (hit - so_far) * experts.active / n)] * n
            so_far = hit
        return layer.replace(experts=experts.replace(frequencies=tuple(found)))

    return profile.replace(layers=[skewed(layer) for layer in profile.layers])


def scattered(plan: Placement) -> Placement:
    """As many of each layer's experts on the GPU, but evenly from the hottest to the coldest."""

    def spread(layer: LayerPlacement) -> LayerPlacement:
        if len(layer.experts) < 2:
            return layer
        device = next(name for name in layer.experts if name != "cpu")
        count, here = sum(len(ids) for ids in layer.experts.values()), len(layer.experts[device])
        chosen = {i * count // here for i in range(here)}
        rest = tuple(i for i in range(count) if i not in chosen)
        return layer.replace(experts={device: tuple(sorted(chosen)), "cpu": rest})

    return plan.replace(layers=[spread(layer) for layer in plan.layers])


def told(found: Sequence[Choices]) -> str:
    """One sentence: how often each choice was faster than uniform, and is predicted so."""

    def gains(speeds: Iterable[tuple[float, float, float]], which: int) -> list[float]:
        return [each[which] / each[0] - 1 for each in speeds]

    parts = []
    for which, what in ((2, "the most used experts instead of any"), (1, "whole layers instead of a share of each")):
        measured = gains((row.measured for row in found), which)
        predicted = gains((row.predicted for row in found), which)
        faster, so = sum(gain > 0 for gain in measured), sum(gain > 0 for gain in predicted)
        span = f"{min(measured):+.1%} to {max(measured):+.1%}"
        parts.append(f"{what} were measured faster in {faster} of {len(measured)} rows ({span}), predicted so in {so}")
    return "; ".join(parts)
