"""Measuring deltas: probes as token ids, what two deltas must have in common, the cache."""
