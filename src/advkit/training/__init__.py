"""Layer 1: the one training loop, its checkpoints and its history."""
