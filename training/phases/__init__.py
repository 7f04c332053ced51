"""The phases of the founding document: teachers, deltas, matching, ablations, scale."""
