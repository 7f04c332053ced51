"""Measuring deltas: probes as token ids, the measurement that makes deltas comparable, the cache."""
