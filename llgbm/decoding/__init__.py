"""Decoding with one adapter for each row of a running batch."""
