"""Plans that are as good as the best: of those the roomiest is the answer, as long as no peer's rule is better."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from solver.assignment import Assignment
from solver.search.headroom import roomiest, smallest_free
from solver.search.plans import Candidate
from solver.search.portfolio import Portfolio

WORK = 0.02
"""Share of the time limit for an exact answer, on small problems; elsewhere it takes a few milliseconds."""
RESOLUTION, SAME = 1e-6, 1e-12
"""Shares by which the seconds of plans with equal ticks may differ, and those of equal plans."""


def settle(search: Portfolio, tie_tolerance: float) -> tuple[Candidate, dict[str, Any]]:
    """The plan to return and its proof, after a search that found some plan: the roomiest that takes no more than the
    share `tie_tolerance` longer than the best plan found, and no longer than any rule's.

    Status and bound are the search's, so an `optimal` plan may be that share above its bound. A relative gap that was
    asked for, and reached, is kept.
    """
    assert search.best is not None
    found = _roomier(search, tie_tolerance)
    if found is None:
        return search.best, search.proof()
    plan, candidate = found
    proof = search.proof()
    as_good = plan.ticks(search.problem) <= search.bound
    bound_s = candidate.seconds if as_good else min(candidate.seconds, proof["bound_s"])
    gap = (candidate.seconds - bound_s) / candidate.seconds if candidate.seconds else 0.0
    return candidate, {**proof, "objective_s": candidate.seconds, "bound_s": bound_s, "gap": gap}


def _roomier(search: Portfolio, tie_tolerance: float) -> tuple[Assignment, Candidate] | None:
    """A plan with more room than the best one, if there is one within the tolerance; none is sought where devices share
    memory, whose free bytes hardly depend on the plan."""
    best = search.best
    before = None if best is None else Assignment.of(best.placement, search.problem)
    if best is None or before is None or search.incumbent is None or search.problem.shared:
        return None
    limits = replace(search.limits, work=WORK * search.limits.seconds)
    plan = roomiest(search.home, search.incumbent, _most_ticks(search, tie_tolerance), limits)
    if smallest_free(search.home, plan) <= smallest_free(search.home, before):
        return None
    plan = plan.canonical(search.home)
    found = search.judged(plan)
    most_s = (1 + max(tie_tolerance, RESOLUTION)) * best.seconds
    if search.peer is not None:
        most_s = min(most_s, (1 + SAME) * search.peer.seconds)
    return (plan, found) if found is not None and found.seconds <= most_s else None


def _most_ticks(search: Portfolio, tie_tolerance: float) -> int:
    """What a plan may take that is as good as the incumbent."""
    assert search.incumbent is not None
    ticks = search.incumbent.ticks(search.problem)
    most = ticks + int(ticks * tie_tolerance)
    peer = None if search.peer is None else Assignment.of(search.peer.placement, search.problem)
    if peer is not None:
        most = min(most, peer.ticks(search.problem))
    if ticks > search.bound and search.closed:
        gap = max(tie_tolerance, search.limits.relative_gap)
        most = min(most, int((search.bound - 2 * search.slack) / (1 - gap)))
    return max(ticks, most)
