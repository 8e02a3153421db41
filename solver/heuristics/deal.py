"""A quick judge of walks: experts dealt out card by card, near enough to the best for comparing one walk with another.

Every card holds the experts that save most against the CPU, with its own attention first or guests invited too,
whichever deal turns out cheaper; what is left over goes to cards with room, and the last of it to the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from solver.deviations import reserve
from solver.heuristics.walk import Walk
from solver.problem import ExpertsCosts, Problem

WINDOW = 40
"""How far below the most that fit the numbers of one kind are tried where there are two; of more kinds, less."""


@dataclass(frozen=True)
class _Hand:
    """What one card holds: ticks of its blocks with local experts, bytes left, bytes short, and by kind experts that
    have to go elsewhere, on GPUs if `near`, and guests that are invited into the bytes left."""

    ticks: int
    room: int
    short: int
    left: tuple[int, ...]
    invited: tuple[int, ...]
    near: bool = False


class Deal:
    """Ticks of walks over one problem, with what it has seen remembered."""

    def __init__(self, problem: Problem, held: Mapping[int, Sequence[int]] | None = None) -> None:
        """With `held`, experts by kind on devices, those devices hold just so many; the others as is best."""
        self.problem = problem
        self._held = held or {}
        self.cpu = problem.devices.index("cpu")
        self.experts = [kind.experts for kind in problem.expert_kinds]
        n_layers, devices = len(problem.layer_class), range(len(problem.devices))
        self._n_layers = n_layers
        self._prefix = [
            [sum(k == c for k in problem.layer_class[:i]) for i in range(n_layers + 1)]
            for c in range(len(problem.classes))
        ]
        self._savings = [[self._saving(x, d) for d in devices] for x in self.experts]
        self._hands: dict[tuple[object, ...], _Hand] = {}
        self._nothing = (0,) * len(problem.classes)
        self._most = [
            [min(kind.number, problem.usable[d] // max(1, kind.experts.bytes[d])) for kind in problem.expert_kinds]
            for d in devices
        ]
        self._buffers = sorted({0, *problem.staging})
        self._guest_room = [self._room_of_guests(d) for d in devices]
        # A byte that fits nowhere costs more than any byte can save.
        dearest = max(max(kind.attention.ticks) for kind in problem.classes)
        dearest += max((max(map(max, x.ticks)) for x in self.experts), default=0)
        self._short = 1 + dearest * 1000 // max(1, min(max(problem.usable), 10**9))

    def of(self, walk: Walk) -> int:
        """Ticks of a walk, hops included."""
        begins = [i for i, d in enumerate(walk.attention) if i == 0 or d != walk.attention[i - 1]]
        cards = [walk.attention[i] for i in begins]
        hops = sum(self.problem.hop[a][b] for a, b in pairwise((walk.embedding, *cards, walk.head)))
        return hops + self.ticks(cards, begins, walk.embedding, walk.head)

    def ticks(self, cards: Sequence[int], starts: Sequence[int], embedding: int, head: int) -> int:
        """Blocks and hand-overs, without hops: stretches from `starts` on `cards`. What does not fit costs dearly."""
        counts: dict[int, list[int]] = {}
        for d, i, j in zip(cards, starts, (*starts[1:], self._n_layers), strict=True):
            here = counts.setdefault(d, [0] * len(self._prefix))
            for c, prefix in enumerate(self._prefix):
                here[c] += prefix[j] - prefix[i]
        counts.setdefault(embedding, [0] * len(self._prefix))
        counts.setdefault(head, [0] * len(self._prefix))
        for d in self._held:
            counts.setdefault(d, [0] * len(self._prefix))
        held = {d: (tuple(here), (embedding == d) + 2 * (head == d)) for d, here in counts.items()}
        if self.problem.whole_layers or not self.experts:
            return self._dealt(held, False, frozenset())
        return min(self._dealt(held, inviting, near) for inviting in (False, True) for near in self._nears(held))

    def _nears(self, held: dict[int, tuple[tuple[int, ...], int]]) -> list[frozenset[int]]:
        """Cards without a buffer for experts on the CPU, which is worth a lot where one card alone needs it."""
        if not self.problem.staging:
            return [frozenset()]
        short = {d for d, (counts, ends) in held.items() if any(self._hand(d, counts, ends, False, None).left)}
        short.discard(self.cpu)
        return [frozenset(), *dict.fromkeys(frozenset(short - {d}) for d in (None, *sorted(short)))]

    def _dealt(self, held: dict[int, tuple[tuple[int, ...], int]], inviting: bool, near: frozenset[int]) -> int:
        hands = {d: self._hand(d, counts, ends, d in near, None) for d, (counts, ends) in held.items()}
        if inviting:
            hands = self._with_guests(held, hands, near)
        total = short = 0
        rooms: dict[int, int] = {}
        invited: dict[tuple[int, int], int] = {}
        left: list[tuple[bool, int, int, int]] = []
        for d, hand in hands.items():
            total, short, rooms[d] = total + hand.ticks, short + hand.short, hand.room
            for k in range(len(self.experts)):
                if hand.left[k]:
                    left.append((hand.near, k, d, hand.left[k]))
                if hand.invited[k]:
                    invited[d, k] = hand.invited[k]
        if left:
            guests, missing = self._seat(left, rooms, invited)
            total, short = total + guests, short + missing
        return total + short * self._short

    def _with_guests(
        self, held: dict[int, tuple[tuple[int, ...], int]], hands: dict[int, _Hand], near: frozenset[int]
    ) -> dict[int, _Hand]:
        """Hands that take in what others leave, card by card: those with attention first, then the other GPUs."""
        idle = [d for d in range(len(self.problem.devices)) if d not in held and d != self.cpu]
        supply = [sum(hand.left[k] for hand in hands.values()) for k in range(len(self.experts))]
        found = {d: hand for d, hand in hands.items() if d == self.cpu}
        for d, (counts, ends) in [*held.items(), *((d, (self._nothing, 0)) for d in idle)]:
            if d == self.cpu:
                continue
            before = hands.get(d)
            kept = [0] * len(supply) if before is None else self._numbers(before, counts)
            limits = tuple(min(n + more, most) for n, more, most in zip(kept, supply, self._most[d], strict=True))
            found[d] = hand = self._hand(d, counts, ends, d in near, limits)
            supply = [n + k - m for n, k, m in zip(supply, kept, self._numbers(hand, counts), strict=True)]
        return found

    def _numbers(self, hand: _Hand, counts: tuple[int, ...]) -> list[int]:
        """Experts of each kind in a hand, with so many attentions by class."""
        own = self.problem.by_kind(counts)
        return [a - left + guests for a, left, guests in zip(own, hand.left, hand.invited, strict=True)]

    def _hand(self, d: int, counts: tuple[int, ...], ends: int, near: bool, limits: tuple[int, ...] | None) -> _Hand:
        """The best hand of device d; with `limits` it may have guests, of each kind so many experts in all."""
        key = (d, counts, ends, near, limits)
        if key not in self._hands:
            self._hands[key] = self._compute(d, counts, ends, near, limits)
        return self._hands[key]

    def _compute(self, d: int, counts: tuple[int, ...], ends: int, near: bool, limits: tuple[int, ...] | None) -> _Hand:
        problem = self.problem
        room = problem.usable[d] - reserve(problem, d, bool(ends & 1), bool(ends & 2))
        workspace, ticks, barred = 0, 0, 0
        for bit, block in ((1, problem.embedding), (2, problem.head)):
            if ends & bit:
                room -= block.bytes[d]
                ticks += block.ticks[d]
                workspace = max(workspace, block.workspace)
                barred += not block.allowed[d]
        room += problem.tied_bytes * (ends == 3)
        for kind, n in zip(problem.classes, counts, strict=True):
            room -= n * kind.attention.bytes[d]
            ticks += n * kind.attention.ticks[d]
            barred += n * (not kind.attention.allowed[d])
            workspace = max(workspace, kind.attention.workspace * (n > 0))
        workspace = max(workspace, *(x.workspace for x in self.experts if x.allowed[d]), 0, 0)
        room -= workspace
        own = problem.by_kind(counts)
        held, buffer = self._beside_buffer(d, room, own, own if limits is None else limits, near)
        room -= buffer
        left, invited = [], []
        for x, a, n in zip(self.experts, own, held, strict=True):
            local = min(n, a)
            ticks += local * x.ticks[d][d]
            room -= local * x.bytes[d]
            barred += local * (not x.allowed[d])
            left.append(a - local)
            invited.append(n - local)
            room -= (n - local) * x.bytes[d] if d in self._held else 0
        return _Hand(ticks, max(0, room), max(0, -room) + barred * 10**12, tuple(left), tuple(invited), near)

    def _beside_buffer(
        self, d: int, room: int, own: Sequence[int], limits: Sequence[int], near: bool
    ) -> tuple[tuple[int, ...], int]:
        """Experts on a card, and the smallest buffer that lets all others with attention here go to the CPU; none where
        these stay near."""
        for buffer in self._buffers:
            held = self._packed(d, max(0, room - buffer), own, limits)
            left = {k for k, (a, n) in enumerate(zip(own, held, strict=True)) if n < a}
            if near or all(self.problem.kind_buffer(k, d) <= buffer for k in left):
                break
        return held, buffer

    def _packed(self, d: int, room: int, own: Sequence[int], limits: Sequence[int]) -> tuple[int, ...]:
        """Experts of each kind, at most `limits`, on a card with `own` attentions of them, those that save most."""
        if self.problem.whole_layers:
            return tuple(own)
        if d in self._held:
            return tuple(self._held[d])
        return max(self._packings(d, room, own, limits, 0, ()), default=(0, ()))[1]

    def _packings(
        self, d: int, room: int, own: Sequence[int], limits: Sequence[int], saved: int, chosen: tuple[int, ...]
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        k, to_come = len(chosen), len(self.experts) - len(chosen)
        if to_come == 0:
            yield saved, chosen
            return
        local, guest, n_bytes = self._savings[k][d]
        most = 0 if n_bytes < 0 else min(limits[k], room // max(1, n_bytes))
        window = WINDOW if len(self.experts) == 2 else WINDOW // 3 if to_come == 2 else 2
        least = most if to_come == 1 else max(0, most - window)
        for n in range(least, most + 1):
            here = min(n, own[k])
            value = here * local + (n - here) * guest
            yield from self._packings(d, room - n * n_bytes, own, limits, saved + value, (*chosen, n))

    def _saving(self, x: ExpertsCosts, d: int) -> tuple[int, int, int]:
        """What experts on d save against the CPU, local or as guests, and their bytes; -1 where they may not be."""
        if not x.allowed[d] or d == self.cpu:
            return 0, 0, -1 if not x.allowed[d] else x.bytes[d]
        other = self.problem.other_twin(d)
        if other == d:
            other = next((e for e in range(len(self.problem.devices)) if e not in (d, self.cpu)), d)
        local = x.ticks[d][self.cpu] - x.ticks[d][d]
        guest = x.ticks[other][self.cpu] - x.ticks[other][d] if other != d else 0
        return max(0, local), max(0, guest), x.bytes[d]

    def _room_of_guests(self, d: int) -> int:
        workspace = max((x.workspace for x in self.experts if x.allowed[d]), default=0)
        return self.problem.usable[d] - reserve(self.problem, d, embedding=False, head=False) - workspace

    def _seat(
        self, left: list[tuple[bool, int, int, int]], rooms: dict[int, int], invited: dict[tuple[int, int], int]
    ) -> tuple[int, int]:
        """Ticks of experts away from their attention (whether not on the CPU; kind; device of that; number), and bytes
        that found no room."""
        total, short, still = 0, 0, []
        for d in range(len(self.problem.devices)):
            rooms.setdefault(d, self._guest_room[d])
        for near, c, a, n in sorted(left, key=lambda item: not item[0]):
            x = self.experts[c]
            for (d, k), seats in sorted(invited.items(), key=lambda seat: (x.ticks[a][seat[0][0]], seat[0])):
                seated = min(n, seats) if k == c and d != a and x.ticks[a][d] < x.ticks[a][self.cpu] else 0
                if seated:
                    invited[d, k] -= seated
                    rooms[d] -= seated * x.bytes[d] if d not in self._held else 0
                    total += seated * x.ticks[a][d]
                    n -= seated
            if n:
                still.append((near, max(x.bytes), c, a, n))
        for near, _, c, a, n in sorted(still, reverse=True):
            ticks, missing = self._to_rooms(self.experts[c], a, n, rooms, near)
            total, short = total + ticks, short + missing
        return total, short

    def _to_rooms(self, x: ExpertsCosts, a: int, n: int, rooms: dict[int, int], near: bool) -> tuple[int, int]:
        """n blocks of experts from a to wherever they fit, cheapest first and tightest room first."""
        total = 0
        fitting = [d for d, room in rooms.items() if room >= x.bytes[d] and d != a and x.allowed[d]]
        fitting = [d for d in fitting if d not in self._held]
        if near:
            fitting = [d for d in fitting if d != self.cpu]
        for d in sorted(fitting, key=lambda d: (x.ticks[a][d], rooms[d])):
            fits = min(n, rooms[d] // max(1, x.bytes[d]))
            rooms[d] -= fits * x.bytes[d]
            total += fits * x.ticks[a][d]
            n -= fits
            if not n:
                break
        return total + n * max(x.ticks[a]), n * max(1, *x.bytes)
