"""The condition vector: cache of embeddings and task detector."""
