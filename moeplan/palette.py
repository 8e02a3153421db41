"""Colours of pictures, matplotlib's and the pages' alike: Okabe and Ito's, told apart with any colour vision."""

from __future__ import annotations

from solver.breakdown import WHAT

MEMORY = {"weights": "#0072b2", "KV cache": "#e69f00", "workspace": "#009e73"}
TIME = dict(zip(WHAT, ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#d55e00", "#cc79a7", "#999999"), strict=True))
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
OTHERS, BAD = "#999999", "#b30000"
