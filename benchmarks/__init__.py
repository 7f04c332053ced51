"""Benchmarks: one file a question, arms interleaved in one run, results as ratios."""
