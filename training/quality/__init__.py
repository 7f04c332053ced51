"""The quality table: accuracy of every method on the same rows of the same tasks."""
