"""Adapters as files: PEFT's format, and the index of a folder of them."""
