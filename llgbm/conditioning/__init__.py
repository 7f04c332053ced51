"""The condition vector and its distance from training: encoder, cache, nearest prompts, task detector, context."""
