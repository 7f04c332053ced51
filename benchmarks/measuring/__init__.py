"""What all benchmarks share: timing, the page of results, and models with prompts."""
