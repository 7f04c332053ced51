"""The command line: configurations, their help, and commands that run several others."""
