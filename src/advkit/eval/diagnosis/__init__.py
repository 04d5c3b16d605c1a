"""Diagnosis: whether to believe a robust accuracy, by attacks that should not win."""
