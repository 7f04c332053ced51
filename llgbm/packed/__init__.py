"""Batches without padding and without repeated prefixes, and the layers that compute on them."""
