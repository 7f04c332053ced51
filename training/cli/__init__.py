"""The command line: the table of commands, configurations and their help."""
