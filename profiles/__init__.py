"""The nouns: model profiles, hardware, workloads, placements, and the readers of real files."""
