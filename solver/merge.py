"""A coarser problem whose bound holds for the finer one: classes of layers that differ little become one.

Merged layers weigh as the lightest of them and take what the quickest does beyond a constant of each class, so every
placement costs at least as much, constants added, as it does in the coarser problem. Fewer classes make fewer patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from solver.problem import BlockCosts, ExpertsCosts, LayerClass, Problem

EXPERTS_APART = 0.002
ATTENTION_APART = 0.01
"""Shares by which expert bytes may differ, and attention bytes (of the experts' bytes where there are any)."""


@dataclass(frozen=True)
class Merged:
    """A bound on `problem` plus `constant` ticks is one on the problem that it was made from."""

    problem: Problem
    constant: int


def merge(problem: Problem) -> Merged | None:
    """The coarser problem; None where no two classes are near enough."""
    clusters: list[list[int]] = []
    for c, kind in enumerate(problem.classes):
        near = (many for many in clusters if all(_near(problem.classes[k], kind) for k in many))
        cluster = next(near, None)
        if cluster is None:
            clusters.append([c])
        else:
            cluster.append(c)
    if len(clusters) == len(problem.classes) or problem.bottleneck:
        return None
    constant, classes = 0, []
    for cluster in clusters:
        kinds = [problem.classes[c] for c in cluster]
        reduced = [_reduced(kind) for kind in kinds]
        classes.append(_least([kind for kind, _ in reduced]))
        constant += sum(problem.class_sizes[c] * fixed for c, (_, fixed) in zip(cluster, reduced, strict=True))
    new = {c: k for k, cluster in enumerate(clusters) for c in cluster}
    layers = tuple(new[c] for c in problem.layer_class)
    staging = tuple(min(problem.staging[c] for c in cluster) for cluster in clusters) if problem.staging else ()
    coarser = replace(problem, classes=tuple(classes), layer_class=layers, staging=staging)
    return Merged(coarser, constant)


def _near(one: LayerClass, other: LayerClass) -> bool:
    if one.attention.allowed != other.attention.allowed or (one.experts is None) != (other.experts is None):
        return False
    if one.experts is None or other.experts is None:
        return _apart(one.attention.bytes, other.attention.bytes, one.attention.bytes) <= ATTENTION_APART
    if one.experts.allowed != other.experts.allowed:
        return False
    if _apart(one.experts.bytes, other.experts.bytes, one.experts.bytes) > EXPERTS_APART:
        return False
    return _apart(one.attention.bytes, other.attention.bytes, one.experts.bytes) <= ATTENTION_APART


def _apart(one: Sequence[int], other: Sequence[int], scale: Sequence[int]) -> float:
    return max(abs(a - b) / max(1, s) for a, b, s in zip(one, other, scale, strict=True))


def _reduced(kind: LayerClass) -> tuple[LayerClass, int]:
    """The class less what its blocks take wherever they are, and that."""
    least = min(kind.attention.ticks)
    attention = replace(kind.attention, ticks=tuple(t - least for t in kind.attention.ticks))
    if kind.experts is None:
        return LayerClass(attention, None), least
    fewest = min(map(min, kind.experts.ticks))
    ticks = tuple(tuple(t - fewest for t in row) for row in kind.experts.ticks)
    return LayerClass(attention, replace(kind.experts, ticks=ticks)), least + fewest


def _least(kinds: Sequence[LayerClass]) -> LayerClass:
    """Element by element the least of all."""
    blocks = [kind.attention for kind in kinds]
    attention = BlockCosts(
        bytes=tuple(map(min, *(b.bytes for b in blocks))) if len(blocks) > 1 else blocks[0].bytes,
        workspace=min(b.workspace for b in blocks),
        ticks=tuple(map(min, *(b.ticks for b in blocks))) if len(blocks) > 1 else blocks[0].ticks,
        allowed=blocks[0].allowed,
    )
    experts = [kind.experts for kind in kinds if kind.experts is not None]
    if len(experts) < 2:
        return LayerClass(attention, experts[0] if experts else None)
    rows = zip(*(x.ticks for x in experts), strict=True)
    least = ExpertsCosts(
        bytes=tuple(map(min, *(x.bytes for x in experts))),
        workspace=min(x.workspace for x in experts),
        ticks=tuple(tuple(map(min, *same)) for same in rows),
        busy=tuple(map(min, *(x.busy for x in experts))),
        allowed=experts[0].allowed,
    )
    return LayerClass(attention, least)
