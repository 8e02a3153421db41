"""The bound of whole cards: at its own prices, at any prices, and where it is branched, against every plan there is."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from tiny_problems import Booleans, Integers, Plans, every_plan, problems, random_problem, turns_problem

from solver.assignment import Assignment
from solver.columns import ColumnSearch, _lagrangian, _Node
from solver.contents import contents_of
from solver.interleaved import InterleavedKnapsack
from solver.merge import merge
from solver.network import UNLIMITED, Between, Network, Row
from solver.problem import Problem

NO_PLAN = 2**62
"""More ticks than any plan takes."""
ROUNDS = 120


def soon() -> float:
    """A deadline that nothing here meets."""
    return time.perf_counter() + 60


# ---- what is between the cards, counted in a plan ----


def between(problem: Problem, plan: Assignment) -> Counter[Row]:
    """How often each thing is there, from what its name says."""
    twins = problem.twins
    runs = [a for i, a in enumerate(plan.attention) if i == 0 or plan.attention[i - 1] != a]
    found: Counter[Row] = Counter(("visits", twins[a]) for a in runs)
    found["visits",] = len(runs)
    found.update(("hop", twins[a], twins[b]) for a, b in pairwise(runs))
    found["start", twins[plan.embedding], twins[runs[0]]] += 1
    found["end", twins[runs[-1]], twins[plan.head]] += 1
    for c, a, d in zip(problem.layer_class, plan.attention, plan.experts, strict=True):
        if d is not None and d != a:
            found["moved", twins[a], twins[d], c] += 1
            found["guests", twins[d], c] += 1
            found["away", c] += twins[d] == problem.cpu
    return found


def numbers_of(plans: Plans, name: Row) -> Integers:
    """The number of `name` in each of the plans."""
    rows = [between(plans.problem, plans.plan(row))[name] for row in range(len(plans))]
    return np_array(rows)


def np_array(rows: list[int]) -> Integers:
    import numpy as np

    return np.array(rows, np.int64)
