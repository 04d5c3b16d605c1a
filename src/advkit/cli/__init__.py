"""The command `advkit`, which uses all layers."""

from advkit.cli.main import main

__all__ = ["main"]
