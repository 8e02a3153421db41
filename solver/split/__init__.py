"""Layers whose experts are split over devices: bounds from modes of layers, plans from these, and their search."""
