"""Robustness under attacks: the evaluation of a model, and its report."""
