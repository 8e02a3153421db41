"""What `measure` and `rehearse` are made of: steps of a live model, and a stopwatch for its blocks."""
