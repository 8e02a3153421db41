"""Bytes on one device as a CP-SAT expression: the one memory rule that every model shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ortools.sat.python import cp_model

from solver.problem import Problem


@dataclass(frozen=True)
class Held:
    """`number` equal blocks, at most `most`, of `n_bytes` each on a device, needing `workspace` if there is any."""

    n_bytes: int
    workspace: int
    number: cp_model.LinearExpr
    most: int


def load_on(
    problem: Problem,
    cp: cp_model.CpModel,
    device: int,
    embedding: cp_model.IntVar,
    head: cp_model.IntVar,
    held: Iterable[Held],
) -> cp_model.LinearExpr:
    """Weights and KV of all blocks, less what embedding and head share, and the largest workspace of those there."""
    ends = [
        Held(block.bytes[device], block.workspace, here, 1)
        for block, here in ((problem.embedding, embedding), (problem.head, head))
    ]
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
    return load
