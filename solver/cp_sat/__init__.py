"""Models in whole numbers: given to CP-SAT they bound all placements and find plans; `scip_counts` finds plans only."""
