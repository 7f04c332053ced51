"""Tasks: file format, readers of other formats, procedural tasks, and the training set."""
