"""Layer 2: detectors of attacks, told by what the attacked model answers."""

from advkit.detectors.forest import OutputForest
from advkit.detectors.table import OutputTable, collect

__all__ = [
    "OutputForest",
    "OutputTable",
    "collect",
]
