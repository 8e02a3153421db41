"""The problem, the CP-SAT model, bounds, hand rules and the independent evaluator."""

from solver.compare import Comparison, compare
from solver.evaluate import Evaluation
from solver.solve import evaluate, solve

__all__ = ["Comparison", "Evaluation", "compare", "evaluate", "solve"]
