"""Folders of teachers, and the deltas that are measured of them."""
