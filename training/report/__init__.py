"""One page with the figures of a working directory."""
