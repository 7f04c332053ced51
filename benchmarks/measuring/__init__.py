"""Shared code of the benchmarks: timing, the page of results, models and prompts."""
