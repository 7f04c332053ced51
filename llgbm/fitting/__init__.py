"""The parts of a fit by task loss: batches, packing, losses, optimisers, parallel training."""
