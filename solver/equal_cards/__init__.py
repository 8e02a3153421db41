"""Machines of equal cards and a CPU: what all cards can hold together, found card by card, and the best of it."""
