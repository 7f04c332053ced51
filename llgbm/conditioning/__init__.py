"""Around the condition vector: the cache of embeddings, and the detector of tasks."""
