"""The problem, the CP-SAT model, bounds, hand rules and the independent evaluator."""

from solver.evaluate import Evaluation
from solver.solve import evaluate, solve

__all__ = ["Evaluation", "evaluate", "solve"]
