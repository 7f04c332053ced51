"""The frozen weights: search, download and conversion."""
