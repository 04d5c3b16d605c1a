"""Stores of evaluations: results that survive a kill, and that several processes share."""
