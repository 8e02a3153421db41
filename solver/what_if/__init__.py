"""From one plan to a decision: grids of scenarios, and answers made of them.

machines, scenarios   what is varied, and which scenarios help each other
ask, quick, binds     one scenario: its search, and what its plan is like
family, neighbours    what one scenario's answer says about another's
rows, store           the table, and the file that an interrupted grid goes on from
run                   on which workers
what_if               the grid; answers and sensitivity are made of it
"""

from solver.what_if.answers import frontier, largest_context, smallest
from solver.what_if.machines import vary
from solver.what_if.sensitivity import sensitivity
from solver.what_if.what_if import what_if

__all__ = ["frontier", "largest_context", "sensitivity", "smallest", "vary", "what_if"]
