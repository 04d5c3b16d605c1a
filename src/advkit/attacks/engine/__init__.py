"""Shared code of the attacks, which are in the modules next to this package."""
