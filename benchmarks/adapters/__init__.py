"""Making, training and refining adapters, and stores with many of them."""
