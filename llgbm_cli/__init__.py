"""The command `llgbm` for people: serve, generate, chat, train. It imports the other packages, and none imports it."""
