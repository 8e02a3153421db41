"""A bound from what whole cards can hold: a linear program over contents of cards, and knapsacks that make these."""
