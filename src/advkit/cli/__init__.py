"""The command `advkit`: composes the layers."""

from advkit.cli.main import main

__all__ = ["main"]
