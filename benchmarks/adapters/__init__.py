"""Adapters: making, training, refining, and many of them."""
