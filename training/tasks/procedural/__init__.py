"""The families of procedural tasks, and the word lists they draw from."""
