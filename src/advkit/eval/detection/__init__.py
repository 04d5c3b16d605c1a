"""Scores of detectors of adversarial inputs, with bootstrap intervals."""
