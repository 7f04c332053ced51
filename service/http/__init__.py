"""What is HTTP and nothing else: errors, middleware, files and streams. Knows no adapters."""
