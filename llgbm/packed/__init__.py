"""Computing on a packed row, with short backward passes: attention, norms and adapters."""
