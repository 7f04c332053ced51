"""Refining: an adapter learns from a few examples of its user."""
