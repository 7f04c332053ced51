"""Decoding with one adapter per row of a running batch."""
