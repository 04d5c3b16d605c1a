"""Findings: reasons to doubt a figure, each with its evidence and a remedy."""
