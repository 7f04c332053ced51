"""The recipe: everything that makes the shipped generator out of tasks."""
