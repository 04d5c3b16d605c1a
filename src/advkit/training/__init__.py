"""Layer 1: the training loop, its checkpoints and its history."""
