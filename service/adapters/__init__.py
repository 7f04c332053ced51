"""The adapters: files, memory, names, and making them."""
