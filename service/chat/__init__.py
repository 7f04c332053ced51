"""Chat: the task of a conversation, and its answer."""
