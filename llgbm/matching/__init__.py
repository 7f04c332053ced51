"""The parts of a fit to teachers: weight tokens, losses on weights and deltas, the delta head."""
