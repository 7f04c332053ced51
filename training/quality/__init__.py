"""The quality table: methods and tasks on the same rows."""
