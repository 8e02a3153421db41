"""llama.cpp: --fit, which places by itself, and --n-cpu-moe N, which its users set by hand.

The embedding is always on the CPU, attention and its cache go through the devices in order, the CPU first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from cost_models import CostModel
from profiles.placement import Placement
from solver.baselines.layout import CPU, Layout, Ledger
from solver.baselines.shares import even_runs, have_room


def llama_cpp_n_cpu_moe(costs: CostModel) -> Placement | None:
    """`-ncmoe N`: experts of the first N layers on the CPU (pull request 15077), with the smallest N that fits.

    Layers are divided as a patient user does with `-ts`: every GPU equally full by bytes. With the default division,
    by count, the first GPUs would lose all their experts before the others lose any (issue 15136). Without GPUs there
    is nothing to set.
    """
    ledger = Ledger(costs)
    if not ledger.gpus:
        return None
    n_layers = len(ledger.layers)
    choices = ([i < n for i in range(n_layers)] for n in range(n_layers))
    on_cpu = next((choice for choice in choices if have_room(ledger, choice)), [True] * n_layers)
    return even_runs(ledger, on_cpu).placement()


def llama_cpp_fit(costs: CostModel) -> Placement | None:
    """`--fit on` (common/fit.cpp, steps 1, 3 and 4; the context is given, so step 2 shrinks none), asking our memory
    rule where it asks its own.

    If the default division, by count of layers in proportion to memory, fits, it stays. Else every GPU from the last to
    the first takes as many layers without experts as it can; what no GPU takes stays whole on the CPU. Then, if all
    dense weights fit, from the first GPU on, layers get their experts back until it is full; of the next layer the
    attention is taken too, with its experts on the next GPU. Only these two are asked whether they have room, the CPU
    never, unless there is no GPU: then a model that does not fit is given up.

    A layer's experts are one block here. fit first tries to let single projections go on (gate and down, or down only),
    which a placement cannot say: so up to two thirds of one layer's experts per GPU may be further away than they
    would be. The head is taken for no layer, as the source's comments mean it; its indices count it as one.
    """
    fit = _Fit(Ledger(costs))
    found = fit.run()
    return None if found is None else found.placement()


@dataclass(frozen=True)
class _Share:
    """What one GPU has of the slots, which are the layers and after them the head: the last `parts` of its layers have
    their experts on the CPU, but for the first of those, which has them on `overflow`."""

    slots: int = 0
    parts: int = 0
    overflow: str = CPU


Shares = tuple[_Share, ...]


class _Fit:
    """The state of the search: a share per GPU, and `start`, the first GPU whose layers are still without experts."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.n_slots = len(ledger.layers) + 1
        self.last = len(ledger.gpus) - 1
        self.moe = bool(ledger.with_experts)
        self.shares: Shares = (_Share(),) * len(ledger.gpus)
        self.start = 0

    def run(self) -> Layout | None:
        ledger = self.ledger
        if not ledger.gpus:
            whole = self._layout(())
            return whole if ledger.used(whole)[CPU] <= ledger.caps[CPU] else None
        default = self._layout(self._by_memory())
        if not ledger.short(default):
            return default
        for d in reversed(range(len(ledger.gpus))):
            self._fill_dense(d)
        if self.moe and self._room_beside_dense() > 0:
            self._give_experts_back()
        return self._layout(self.shares)

    def _by_memory(self) -> Shares:
        """Slot i of n goes to the first GPU whose memory, with that of those before it, is more than i / n of all."""
        caps = [self.ledger.caps[gpu] for gpu in self.ledger.gpus]
        ends = [end * self.n_slots for end in accumulate(caps)]
        homes = [min(self.last, bisect_right(ends, i * sum(caps))) for i in range(self.n_slots)]
        return tuple(_Share(homes.count(d)) for d in range(len(caps)))

    def _room_beside_dense(self) -> int:
        """Bytes free on all GPUs together with every layer on one and all experts on the CPU; negative if too few."""
        shares = self._by_memory()
        dense = (_Share(share.slots, len(layers)) for share, layers in zip(shares, self._layers(shares), strict=True))
        used = self.ledger.used(self._layout(tuple(dense)))
        return sum(self.ledger.caps[gpu] - used[gpu] for gpu in self.ledger.gpus)

    def _fill_dense(self, d: int) -> None:
        """Step 3: GPU d takes as many of the slots that are left, the last first, as fit without experts."""
        left = self.n_slots - sum(share.slots for share in self.shares[d + 1 :])

        def with_slots(n: int) -> Shares:
            layers = n - 1 if left == self.n_slots and n else n  # one of them is the head
            return _put(self.shares, d, _Share(n, layers if self.moe else 0))

        self.shares = with_slots(_most(left, lambda n: self._fits(with_slots(n), d)))

    def _give_experts_back(self) -> None:
        """Step 4, from the first GPU on: whole layers, then one more whose experts are on the next GPU."""
        self.start = next((d for d, share in enumerate(self.shares) if share.slots), self.last + 1)
        d = 0
        while d <= self.start <= self.last:
            self._fill_whole(d)
            if d < self.last:
                self._squeeze(d)
            d += 1

    def _fill_whole(self, d: int) -> None:
        """GPU d takes as many layers without experts as it can hold with them, from itself and the GPUs after it."""
        movable = sum(share.parts for share in self.shares[self.start :])
        n = _most(movable, lambda n: self._fits(self._made_whole(d, n)[0], d))
        self.shares, self.start = self._made_whole(d, n)

    def _made_whole(self, d: int, n: int) -> tuple[Shares, int]:
        """The shares with n layers more that are whole on GPU d, and the first GPU that has any left."""
        shares, start = self.shares, self.start
        while start <= self.last:
            given = shares[start]
            moved = min(n, given.parts)
            shares = _put(shares, start, replace(given, slots=given.slots - moved, parts=given.parts - moved))
            shares = _put(shares, d, replace(shares[d], slots=shares[d].slots + moved))
            n -= moved
            if shares[start].parts or (start == self.last and shares[start].slots):
                break
            start += 1
        return shares, start

    def _squeeze(self, d: int) -> None:
        """One slot more on GPU d, its experts on the next GPU, if that leaves room on both. On the last GPU, whose next
        is the CPU, such a layer is no news."""
        source = self.start
        if source > self.last or not self.shares[source].slots:
            return
        given = self.shares[source]
        part = min(1, given.parts)  # the head, where nothing else is left, is none
        taken = _put(self.shares, source, replace(given, slots=given.slots - 1, parts=given.parts - part))
        more = replace(
            taken[d], slots=taken[d].slots + 1, parts=taken[d].parts + part, overflow=self.ledger.gpus[d + 1]
        )
        test = _put(taken, d, more)
        if self._fits(test, d, spare=1) and self._fits(test, d + 1, spare=1):
            self.shares = test

    def _fits(self, shares: Shares, d: int, spare: int = 0) -> bool:
        gpu = self.ledger.gpus[d]
        return self.ledger.used(self._layout(shares))[gpu] + spare <= self.ledger.caps[gpu]

    def _layout(self, shares: Shares) -> Layout:
        """The slots that no GPU has are the first ones, and stay whole on the CPU."""
        homes = [CPU] * (self.n_slots - sum(share.slots for share in shares))
        experts = homes.copy()
        for gpu, share, layers in zip(self.ledger.gpus, shares, self._layers(shares), strict=True):
            homes += [gpu] * share.slots
            experts += [gpu] * (len(layers) - share.parts)
            experts += [share.overflow, *[CPU] * (share.parts - 1)][: share.parts]
        return Layout(CPU, homes[-1], homes[:-1], self.ledger.homes_of_experts(experts.__getitem__))

    def _layers(self, shares: Shares) -> list[range]:
        """The layers in every share: its slots without the head."""
        n_layers = self.n_slots - 1
        ends = list(accumulate((share.slots for share in shares), initial=self.n_slots - sum(s.slots for s in shares)))
        return [range(min(start, n_layers), min(end, n_layers)) for start, end in pairwise(ends)]


def _put(shares: Shares, d: int, share: _Share) -> Shares:
    return (*shares[:d], share, *shares[d + 1 :])


def _most(n: int, fits: Callable[[int], bool]) -> int:
    """The largest of 0 … n that fits, given that more never fits where fewer do not; 0 is taken to fit.

    fit looks for it by false position, which is as good where every question costs a second.
    """
    if n == 0 or fits(n):
        return n
    least, most = 0, n
    while most - least > 1:
        middle = (least + most) // 2
        if fits(middle):
            least = middle
        else:
            most = middle
    return least
