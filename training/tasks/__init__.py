"""Tasks: their file format, readers of other formats, procedural tasks, the training set."""
