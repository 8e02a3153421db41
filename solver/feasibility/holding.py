"""How many of each kind of blocks are on each device, and the bytes that it then holds, as a CP-SAT model.

It grows with the kinds of blocks and with the devices; with the layers only where they have to be in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from ortools.sat.python import cp_model

from solver.cp_sat.run import total
from solver.feasibility.needs import Blocks, Needs


class Holding:
    """`number[i][d]` blocks of kind i are on device d, which holds `load[d]` bytes, workspace and buffers included.

    Where `room` is given, no device is offered more of any kind than has room there by itself. Where layers have to be
    in order, they go from device to device in runs of `stride` only.
    """

    def __init__(self, needs: Needs, room: Sequence[int] | None = None, stride: int = 1) -> None:
        self.needs, self.cp = needs, cp_model.CpModel()
        self.devices = range(len(needs.blocks[0].bytes))
        self.gpus = [d for d in self.devices if d != needs.cpu]
        self.number = [
            [self.cp.new_int_var(0, _most(blocks, d, room), "") for d in self.devices] for blocks in needs.blocks
        ]
        for blocks, here in zip(needs.blocks, self.number, strict=True):
            self.cp.add(sum(here) == blocks.number)
        self.load = [self._load(d) for d in self.devices]
        if needs.staged:
            self._stage()
        if needs.streams:
            self._stream()
        if needs.rank is not None:
            self._keep_order(needs.rank, stride)

    def _load(self, d: int) -> cp_model.LinearExpr:
        """Bytes of all blocks, less what embedding and head share, and the largest workspace."""
        needs = self.needs
        load = total((blocks.bytes[d], here[d]) for blocks, here in zip(needs.blocks, self.number, strict=True))
        load -= needs.tied_bytes * both(self.cp, self.number[0][d], self.number[1][d])
        return load + self._largest(
            (blocks.workspace, blocks.number, here[d]) for blocks, here in zip(needs.blocks, self.number, strict=True)
        )

    def _largest(self, sizes: Iterable[tuple[int, int, cp_model.IntVar]]) -> cp_model.LinearExpr:
        """At least the largest (size, most, number) whose number is not 0, as steps from each size to the next."""
        kinds = [(size, most, number) for size, most, number in sizes if size]
        steps = {size: self.cp.new_bool_var("") for size in sorted({size for size, _, _ in kinds})}
        for size, most, number in kinds:
            self.cp.add(number <= most * steps[size])
        for lower, higher in pairwise(steps.values()):
            self.cp.add_implication(higher, lower)
        return total((size - lower, steps[size]) for lower, size in pairwise([0, *steps]))

    def _stage(self) -> None:
        """A GPU keeps a buffer for the layers that have their attention there and their experts on the CPU."""
        cpu, apart = self.needs.cpu, []
        for attention, experts, size in self.needs.staged:
            most = self.needs.blocks[attention].number
            here = [self.cp.new_int_var(0, most, "") for _ in self.devices]
            for number, var in zip(self.number[attention], here, strict=True):
                self.cp.add(var <= number)
            self.cp.add(sum(here) == self.number[experts][cpu])
            apart.append((size, most, here))
        for d in self.gpus:
            self.load[d] += self._largest((size, most, here[d]) for size, most, here in apart)

    def _stream(self) -> None:
        """The first GPU that holds anything keeps a buffer for the largest block on the CPU."""
        cp, blocks = self.cp, self.needs.blocks
        most = max(kind.streamed for kind in blocks)
        on_cpu = [here[self.needs.cpu] for here in self.number]
        buffer = self._largest((kind.streamed, kind.number, here) for kind, here in zip(blocks, on_cpu, strict=True))
        earlier: list[cp_model.IntVar] = []
        for d in self.gpus:
            used, kept = cp.new_bool_var(""), cp.new_int_var(0, most, "")
            for kind, here in zip(blocks, self.number, strict=True):
                cp.add(here[d] <= kind.number * used)
            cp.add(sum(here[d] for here in self.number) >= used)
            cp.add(kept >= buffer - most * (1 - used) - most * sum(earlier))
            self.load[d] += kept
            earlier.append(used)

    def _keep_order(self, rank: Sequence[int], stride: int) -> None:
        """Up to each rank, devices have the attention of some first layers, and those behind them that of the rest."""
        cp, walk = self.cp, self.needs.walk
        passed_before: list[cp_model.IntVar] = []
        for place in sorted(set(rank))[:-1]:
            here = [d for d in self.devices if rank[d] <= place]
            runs = [cp.new_bool_var("") for _ in range(0, len(walk), stride)]
            for run, next_run in pairwise(runs):
                cp.add_implication(next_run, run)
            passed = [runs[layer // stride] for layer in range(len(walk))]
            for before, now in zip(passed_before, runs, strict=False):
                cp.add_implication(before, now)
            for i in set(walk):
                there = sum(var for var, home in zip(passed, walk, strict=True) if home == i)
                cp.add(sum(self.number[i][d] for d in here) == there)
            for d in here if self.needs.head_in_order else ():
                cp.add(self.number[1][d] <= passed[-1])
            passed_before = runs

    def in_turn(self, room: Sequence[object]) -> None:
        """Of devices that are equal, in `room` too, an earlier one has no fewer of the blocks that weigh most in all:
        which of them is which does not matter."""
        if self.needs.streams:
            return
        for group in equal_devices(self.needs, room):
            weights = [b.allowed[group[0]] * b.number * b.bytes[group[0]] for b in self.needs.blocks]
            here = self.number[weights.index(max(weights))]
            for d, e in pairwise(group):
                self.cp.add(here[d] >= here[e])


def both(cp: cp_model.CpModel, one: cp_model.IntVar, other: cp_model.IntVar) -> cp_model.IntVar:
    """1 where both are, of two that are 0 or 1."""
    found = cp.new_bool_var("")
    cp.add(found <= one)
    cp.add(found <= other)
    cp.add(one + other <= 1 + found)
    return found


def equal_devices(needs: Needs, room: Sequence[object]) -> list[list[int]]:
    """Groups of devices with the same figures, permissions and `room`."""
    groups: dict[object, list[int]] = {}
    for d, here in enumerate(room):
        figures = tuple((blocks.bytes[d], blocks.allowed[d]) for blocks in needs.blocks)
        rank = None if needs.rank is None else needs.rank[d]
        groups.setdefault((here, rank, d == needs.cpu, figures), []).append(d)
    return list(groups.values())


def _most(blocks: Blocks, device: int, room: Sequence[int] | None) -> int:
    if not blocks.allowed[device]:
        return 0
    if room is None:
        return blocks.number
    left, each = room[device] - blocks.workspace, blocks.bytes[device]
    return min(blocks.number, max(0, left) // each) if each else blocks.number * (left >= 0)
