"""Benchmarks of attacks: the most found for the fewest passes."""
