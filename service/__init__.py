"""The HTTP service around `llgbm`: makes adapters from prompts and serves them. Read `service.app` first."""
