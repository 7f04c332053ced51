"""Files that survive a crash: writes that are synced to the disk, and SQLite."""
