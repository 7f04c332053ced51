"""The loaded base, generator and text encoder, and the cache of text embeddings."""
