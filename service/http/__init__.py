"""HTTP only: errors, middleware, files and streams. Knows nothing of adapters."""
