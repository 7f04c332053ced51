"""Folders of teacher adapters, and the cache of their deltas."""
