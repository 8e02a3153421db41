"""Whether everything fits somewhere, and if not, how few bytes are missing.

Both answers are proofs over all placements that a demand stands for. Work is limited by CP-SAT's own count of it, so
answers do not depend on the machine's load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from solver.cp_sat.load import keep_within, load_of
from solver.cp_sat.run import Limits, Status, bound_of, search, total
from solver.feasibility.holding import Holding, both, equal_devices
from solver.feasibility.needs import Demand, Needs
from solver.shared import Room

ONE_ANSWER = 0.15
"""Work, about seconds, that the question whether something fits is worth; it rarely takes a tenth of it."""
ONE_ATTEMPT = 0.3
"""The same for each attempt at the least shortage."""
BRAKE = 5.0
"""Seconds after which a question is given up whatever its work, which CP-SAT has been seen to count far too low."""
LONG_RUNS = 8
"""Layers that have to be in order are first tried in about so many runs."""


@dataclass
class Budget:
    """The work that is left for the next questions; `kept` is for those after them, and `asked` counts all."""

    left: float
    kept: float = 0.0
    asked: int = 0

    def share(self, parts: int) -> None:
        """Leave the next questions one of so many equal parts of what is left in all."""
        whole = self.left + self.kept
        self.left, self.kept = whole / parts, whole - whole / parts

    def search(self, cp: cp_model.CpModel, most: float) -> tuple[cp_model.CpSolver, Status]:
        solver, status = search(cp, Limits(BRAKE, work=min(most, self.left)))
        self.left = max(0.0, self.left - solver.deterministic_time)
        self.asked += 1
        return solver, status


@dataclass(frozen=True)
class Missing:
    """Bytes to add per device, then per pool, so that something fits, and the fewest in all that any placement misses
    (proved). These agree in sum unless the work ran out; where it ran out before any was found, `bytes` is empty."""

    bytes: tuple[int, ...]
    least: int

    @property
    def proved(self) -> bool:
        return sum(self.bytes) == self.least


def fits(demand: Demand, room: Room, budget: Budget) -> bool | None:
    """Whether some placement needs no more than the `room` of each device and pool; None where the work ran out, or
    where the demand is not exact and the truth lies between its two sides."""
    for needs in demand.enough:
        answer = _fits(needs, room, budget)
        if answer or needs == demand.needed:
            return answer
    return False if _fits(demand.needed, room, budget) is False else None


def _fits(needs: Needs, room: Room, budget: Budget) -> bool | None:
    """Cheap proofs first: it cannot fit where it does not without order and buffers, and it does if the layers fit in
    long runs."""
    if needs != needs.bare and _holds(needs.bare, room, budget) is False:
        return False
    if needs.rank is not None and _holds(needs, room, budget, _long_run(needs)):
        return True
    return _holds(needs, room, budget)


def _holds(needs: Needs, room: Room, budget: Budget, stride: int = 1) -> bool | None:
    _, status = budget.search(_within(needs, room, stride).cp, ONE_ANSWER)
    return None if status == "unknown" else status != "infeasible"


def numbers_that_fit(needs: Needs, room: Room, budget: Budget) -> list[list[int]] | None:
    """How many of each of the needs' blocks may be on each device, so that all fit; None where that was not found."""
    holding = _within(needs, room)
    solver, status = budget.search(holding.cp, ONE_ANSWER)
    if status not in ("optimal", "feasible"):
        return None
    return [[solver.value(var) for var in here] for here in holding.number]


def _within(needs: Needs, room: Room, stride: int = 1) -> Holding:
    holding = Holding(needs, room.usable, stride)
    keep_within(holding.cp, holding.load, room)
    holding.in_turn(room.each)
    return holding


def _long_run(needs: Needs) -> int:
    return 1 if needs.rank is None else max(1, len(needs.walk) // LONG_RUNS)


def least_missing(demand: Demand, room: Room, budget: Budget) -> Missing | None:
    """The fewest bytes to add for a demand that does not fit in `room`; None where no bytes help.

    At first equal devices are taken as one, which bounds the bytes from below and guesses how many devices overflow. If
    those can, with no more bytes, it is proved; else any may. Of several ways the one is given that leaves most to the
    CPU, or to the device or pool that misses most.
    """
    if any(not any(blocks.allowed) for blocks in demand.needed.blocks):
        return None
    least, guess = _together(demand.needed.bare, room.usable, budget)
    if room.shared:  # which is nearly always what is short, and no device is
        guess = [False] * len(room.usable) + [True] * len(room.shared)
    best: tuple[int, ...] = ()
    for needs in demand.enough:
        for fixed, stride in dict.fromkeys([(True, _long_run(needs)), (False, _long_run(needs)), (False, 1)]):
            overflow = _Overflow(Holding(needs, stride=stride), room, guess, fixed)
            found, status, bound = overflow.fewest(least, budget)
            if (fixed, stride) == (False, 1) and needs == demand.needed:
                if status == "infeasible":
                    return None
                least = max(least, bound)
            if found and (not best or sum(found) < sum(best)):
                best = found
            if sum(best) == least:
                return Missing(overflow.gathered(best, budget), least)
    return Missing(best, least)


def _together(needs: Needs, usable: Sequence[int], budget: Budget) -> tuple[int, list[bool]]:
    """A lower bound on the missing bytes, and which devices would overflow, if equal devices that keep the same
    workspace shared their room."""
    cp, parts = cp_model.CpModel(), []
    for group in equal_devices(needs, usable):
        levels = {0, *(blocks.workspace for blocks in needs.blocks if blocks.allowed[group[0]])}
        of_group = [_Equals(cp, needs, group, level, usable[group[0]]) for level in sorted(levels)]
        cp.add(sum(part.cards for part in of_group) == len(group))
        parts += of_group
    for i, blocks in enumerate(needs.blocks):
        cp.add(sum(part.number[i] for part in parts) == blocks.number)
    cp.minimize(sum(part.missing for part in parts))
    solver, status = budget.search(cp, ONE_ATTEMPT)
    overflow = [False] * len(usable)
    for part in parts if status in ("optimal", "feasible") else ():
        short = solver.value(part.cards) if solver.value(part.missing) else 0
        for d in [d for d in part.group if not overflow[d]][:short]:
            overflow[d] = True
    return max(1, bound_of(solver, status)), overflow


class _Equals:
    """Some `cards` of a group of equal devices, which keep `level` bytes of workspace and share their room."""

    def __init__(self, cp: cp_model.CpModel, needs: Needs, group: Sequence[int], level: int, room: int) -> None:
        self.group, first = group, group[0]
        self.cards = cp.new_int_var(0, len(group), "")
        self.missing = cp.new_int_var(0, _everything(needs), "")
        may = [blocks.allowed[first] and blocks.workspace <= level for blocks in needs.blocks]
        self.number = [cp.new_int_var(0, b.number * ok, "") for b, ok in zip(needs.blocks, may, strict=True)]
        for blocks, number in zip(needs.blocks, self.number, strict=True):
            some = cp.new_bool_var("")
            cp.add(number <= blocks.number * some)
            cp.add(self.cards >= some)
        load = total((blocks.bytes[first], n) for blocks, n in zip(needs.blocks, self.number, strict=True))
        load -= needs.tied_bytes * both(cp, self.number[0], self.number[1])
        cp.add(load + (level - room) * self.cards <= self.missing)


class _Overflow:
    """Where devices or pools hold more than is usable: `missing[d]` bytes if `over[d]`, which `guess` rules or only
    hints at."""

    def __init__(self, holding: Holding, room: Room, guess: Sequence[bool], fixed: bool) -> None:
        self._holding, cp = holding, holding.cp
        loads = [*holding.load, *(load_of(pool, cp, holding.load) for pool in room.shared)]
        self._missing = [cp.new_int_var(0, _everything(holding.needs, room), "") for _ in loads]
        for d, (load, usable, missing) in enumerate(zip(loads, room.all, self._missing, strict=True)):
            over = cp.new_bool_var("")
            cp.add(missing == load - usable).only_enforce_if(over)
            cp.add(load <= usable).only_enforce_if(~over)
            cp.add(missing == 0).only_enforce_if(~over)
            if fixed:
                cp.add(over == guess[d])
            else:
                cp.add_hint(over, guess[d])
        self._holding.in_turn([(here, fixed and guess[d]) for d, here in enumerate(room.each)])

    def fewest(self, least: int, budget: Budget) -> tuple[tuple[int, ...], Status, int]:
        """Missing bytes of each device, at least `least` in all, and a bound on their sum."""
        cp, missing = self._holding.cp, self._missing
        cp.add(sum(missing) >= least)
        cp.minimize(sum(missing))
        solver, status = budget.search(cp, ONE_ATTEMPT)
        found = () if status in ("infeasible", "unknown") else tuple(solver.value(var) for var in missing)
        return found, status, max(least, bound_of(solver, status))

    def gathered(self, found: tuple[int, ...], budget: Budget) -> tuple[int, ...]:
        """As many bytes in all, as many of them as possible on one device."""
        cp, missing, cpu = self._holding.cp, self._missing, self._holding.needs.cpu
        cp.add(sum(missing) == sum(found))
        cp.maximize(missing[cpu if found[cpu] else found.index(max(found))])
        solver, status = budget.search(cp, ONE_ANSWER / 4)
        return found if status in ("infeasible", "unknown") else tuple(solver.value(var) for var in missing)


def _everything(needs: Needs, room: Room | None = None) -> int:
    """More bytes than any device or pool can hold."""
    devices = max([len(pool.devices) for pool in room.shared] if room else [], default=1)
    contexts = sum(room.contexts) if room else 0
    beside = sum(b.workspace + b.streamed for b in needs.blocks) + sum(n for *_, n in needs.staged)
    return sum(max(b.bytes) * b.number for b in needs.blocks) + devices * beside + contexts
