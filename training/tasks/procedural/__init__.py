"""The families of procedural tasks, and their word lists."""
