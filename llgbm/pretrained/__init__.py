"""The frozen weights: where they are found, fetched and converted."""
