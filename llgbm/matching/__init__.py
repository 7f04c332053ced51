"""The parts of a fit to teachers: weight tokens, deltas and their losses, the delta head."""
