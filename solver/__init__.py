"""The problem, bounds, plans, hand rules and the independent evaluator.

`solve` states the problem and hands it to a search; `evaluate` judges what comes back, `compare` puts it beside rules.
The question is in `problem`, `rules`, `pins` and `deviations`; an `assignment` answers it. How answers are found:

    column_generation   bounds: linear programs over what whole cards can hold
    cp_sat              bounds and plans: patterns of equal cards, counts by device, slices, free order, busiest
    heuristics          plans without proof: walks from prices, improved by small steps, with experts filled in
    search              the order of all these, from cheap to dear, and at the end the roomiest of equally good plans
    split               the same for layers whose experts are split over devices: its own bound, plans and search
    feasibility         when nothing fits: how many bytes are missing, and which small changes help
    baselines           what people and other runtimes do by rule
    what_if             many questions that help each other, as one table

Imports point from `split` over `search`, `heuristics` and `cp_sat` to `column_generation`.
"""

from solver.compare import Comparison, compare
from solver.evaluate import Evaluation
from solver.solve import evaluate, solve
from solver.what_if import frontier, largest_context, sensitivity, smallest, what_if

__all__ = [
    "Comparison", "Evaluation", "compare", "evaluate", "frontier", "largest_context", "sensitivity", "smallest",
    "solve", "what_if",
]  # fmt: skip
