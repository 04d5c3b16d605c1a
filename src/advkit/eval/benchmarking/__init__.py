"""Benchmarks of attacks: attack success rate and distance against cost in passes."""
