"""Bytes on one device as a CP-SAT expression, and in a pool: the one memory rule that every model shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from solver.deviations import Block, deviation
from solver.problem import Problem, Robust
from solver.shared import Room, Shared

MOST_BYTES = 2**50
"""More than any device holds."""


@dataclass(frozen=True)
class Held:
    """`number` equal blocks, at most `most`, of `n_bytes` each on a device, needing `workspace` if there is any; each
    may turn out larger by its `deviation`."""

    n_bytes: int
    workspace: int
    number: cp_model.LinearExpr
    most: int
    deviation: int = 0

    @staticmethod
    def of(block: Block, device: int, number: cp_model.LinearExpr, most: int) -> Held:
        return Held(block.bytes[device], block.workspace, number, most, deviation(block, device))


def load_on(
    problem: Problem,
    cp: cp_model.CpModel,
    device: int,
    embedding: cp_model.IntVar,
    head: cp_model.IntVar,
    held: Iterable[Held],
    sent: Mapping[int, cp_model.LinearExpr] | None = None,
) -> cp_model.LinearExpr:
    """Weights and KV of all blocks, less what embedding and head share, the largest workspace of those there, and what
    is kept free for deviations.

    `sent[c]` layers of class c with their attention here have their experts on the CPU, for which a target may keep a
    buffer here.
    """
    ends = [Held.of(block, device, here, 1) for block, here in ((problem.embedding, embedding), (problem.head, head))]
    blocks = [*ends, *held]
    workspace = cp.new_int_var(0, max(block.workspace for block in blocks), f"workspace[{device}]")
    load: cp_model.LinearExpr = workspace
    for block in blocks:
        load += block.n_bytes * block.number
        if block.workspace and block.most > 1:
            present = cp.new_bool_var("")
            cp.add(block.number <= block.most * present)
            cp.add(workspace >= block.workspace * present)
        elif block.workspace:
            cp.add(workspace >= block.workspace * block.number)
    if problem.tied_bytes:
        both = cp.new_bool_var(f"tied[{device}]")
        cp.add_implication(both, embedding)
        cp.add_implication(both, head)
        load -= problem.tied_bytes * both
    staged = {c: number for c, number in (sent or {}).items() if problem.buffer(c, device, problem.cpu)}
    if staged:
        load += _buffer(problem, cp, staged)
    if problem.robust is not None:
        load += _spare(cp, problem.robust, blocks)
    return load


def _buffer(problem: Problem, cp: cp_model.CpModel, sent: Mapping[int, cp_model.LinearExpr]) -> cp_model.IntVar:
    """The largest buffer of the classes of which any layers are sent."""
    buffer = cp.new_int_var(0, max(problem.staging[c] for c in sent), "")
    for c, number in sent.items():
        present = cp.new_bool_var("")
        cp.add(number <= problem.class_sizes[c] * present)
        cp.add(buffer >= problem.staging[c] * present)
    return buffer


def _spare(cp: cp_model.CpModel, robust: Robust, blocks: Sequence[Held]) -> cp_model.IntVar:
    """The sum of the largest deviations, as the least over some values (`solver/deviations.py`), one of which is
    chosen."""
    sizes, most = {block.deviation for block in blocks}, sum(block.most for block in blocks)
    spare = cp.new_int_var(0, min(robust.blocks, most) * max(sizes), "spare")
    chosen = []
    for z in sorted({0, *sizes}) if robust.blocks < most else [0]:
        chosen.append(cp.new_bool_var(""))
        above = sum(max(0, block.deviation - z) * block.number for block in blocks)
        cp.add(spare >= robust.blocks * z + above).only_enforce_if(chosen[-1])
    cp.add_exactly_one(chosen)
    return spare


def load_of(pool: Shared, cp: cp_model.CpModel, loads: Sequence[cp_model.LinearExpr]) -> cp_model.LinearExpr:
    """What is in a pool where devices hold `loads`."""
    total = cp_model.LinearExpr.sum([loads[d] for d in pool.devices])
    for d, context in zip(pool.devices, pool.contexts, strict=True):
        if context:
            some = cp.new_bool_var("")
            cp.add(loads[d] <= MOST_BYTES * some)
            total += context * some
    return total


def keep_within(
    cp: cp_model.CpModel,
    loads: Sequence[cp_model.LinearExpr],
    room: Room,
    added: Sequence[cp_model.LinearExprT] | None = None,
) -> None:
    """Every device within its memory, and all that share one together within that; with so many bytes `added` to each
    device, then to each pool."""
    held = [*loads, *(load_of(pool, cp, loads) for pool in room.shared)]
    for load, usable, more in zip(held, room.all, added or [0] * len(held), strict=True):
        cp.add(load <= usable + more)
