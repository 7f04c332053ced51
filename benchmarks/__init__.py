"""Benchmarks: one file per question, arms interleaved in one run, results mostly as ratios. `run.py` is the entry."""
