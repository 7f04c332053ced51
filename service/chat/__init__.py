"""From a conversation to its answer."""
