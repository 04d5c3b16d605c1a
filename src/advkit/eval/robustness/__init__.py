"""Robustness under attacks: the evaluation and its report."""
