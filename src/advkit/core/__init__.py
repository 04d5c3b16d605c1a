"""Layer 0: tensors, norms, losses, randomness and checks; knows torch and numpy only."""
