"""Attacks on a model and its detector together."""
