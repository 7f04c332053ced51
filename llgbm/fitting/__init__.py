"""The parts of a fit by task loss: losses, objectives, teachers, optimisers, parallel training."""
