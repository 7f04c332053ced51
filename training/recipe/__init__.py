"""The recipe: everything that makes the shipped generator from tasks."""
