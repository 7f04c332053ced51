"""Decoding speed and accuracy, in this process."""
