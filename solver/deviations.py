"""Room for blocks that turn out larger: any few of the blocks on a device may, all at once (`Robust`).

A device keeps the sum of its so many largest deviations free (Bertsimas and Sim, Operations Research 2004). That sum is
the least of blocks * z + Σ max(0, deviation - z) over every z that is 0 or one of the deviations. So a device has room
exactly if, for one such z, it has room in a problem without deviations: with blocks * z bytes less, and with every
block larger by max(0, deviation - z).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from solver.problem import BlockCosts, ExpertsCosts, LayerClass, Problem

MOST_LEVELS = 6
"""Values of z that are told apart; more are rounded together, which can only make room."""

Block = BlockCosts | ExpertsCosts


def deviation(block: Block, device: int) -> int:
    """Bytes that the block may be larger there than it is said to be."""
    return block.deviation[device] if block.deviation else 0


def spare_bytes(problem: Problem, device: int, held: Iterable[tuple[Block, int]]) -> int:
    """Bytes that `device` keeps free for the deviations of so many of each block."""
    if problem.robust is None:
        return 0
    total, left = 0, problem.robust.blocks
    for size, number in sorted(((deviation(block, device), n) for block, n in held), reverse=True):
        taken = min(left, number)
        total, left = total + taken * size, left - taken
    return total


def reserve(problem: Problem, device: int, embedding: bool = True, head: bool = True) -> int:
    """The most that `device` may have to keep free, with the embedding and the head there or not."""
    if problem.robust is None:
        return 0
    held: list[tuple[Block, int]] = [(problem.embedding, int(embedding)), (problem.head, int(head))]
    for kind, n in zip(problem.classes, problem.class_sizes, strict=True):
        held.append((kind.attention, n * kind.attention.allowed[device]))
        if kind.experts is not None:
            held.append((kind.experts, n * kind.experts.allowed[device]))
    return spare_bytes(problem, device, held)


def reserved(problem: Problem) -> Problem:
    """A problem without deviations whose plans all fit in `problem`, which has more of them."""
    room = problem.room.less([reserve(problem, d) for d in range(len(problem.devices))])
    return replace(problem, robust=None, usable=room.usable, shared=room.shared)


def nominal(problem: Problem, device: int) -> list[Problem]:
    """Problems without deviations: what has room on `device` in `problem` has room there in one of these; and the other
    way round, unless z were rounded together."""
    if problem.robust is None:
        return [problem]
    blocks: list[Block] = [problem.embedding, problem.head, *(kind.attention for kind in problem.classes)]
    blocks += [kind.experts for kind in problem.classes if kind.experts is not None]
    ranges = [(z, z) for z in sorted({0, *(deviation(block, device) for block in blocks if block.allowed[device])})]
    while len(ranges) > MOST_LEVELS:
        k = min(range(1, len(ranges)), key=lambda k: ranges[k][1] - ranges[k - 1][0])
        ranges[k - 1 : k + 1] = [(ranges[k - 1][0], ranges[k][1])]
    kept = [(problem.robust.blocks * least, most) for least, most in ranges]
    return [_level(problem, device, spare, most) for spare, most in kept if spare <= problem.usable[device]]


def _level(problem: Problem, device: int, spare: int, z: int) -> Problem:
    """The problem with `spare` bytes less on `device`, where blocks are larger by what deviates by more than z."""

    def larger(block: Block) -> tuple[int, ...]:
        return tuple(n + max(0, deviation(block, d) - z) if d == device else n for d, n in enumerate(block.bytes))

    return replace(
        problem,
        robust=None,
        usable=tuple(n - spare if d == device else n for d, n in enumerate(problem.usable)),
        embedding=replace(problem.embedding, bytes=larger(problem.embedding)),
        head=replace(problem.head, bytes=larger(problem.head)),
        classes=tuple(
            LayerClass(
                replace(kind.attention, bytes=larger(kind.attention)),
                kind.experts and replace(kind.experts, bytes=larger(kind.experts)),
            )
            for kind in problem.classes
        ),
    )
