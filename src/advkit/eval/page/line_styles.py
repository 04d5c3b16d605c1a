"""Color, dash and marker of each attack, the same in all panels and all reports."""

from __future__ import annotations

import zlib
from typing import NamedTuple

# The order decides about the style. New attacks go to the end, so that older reports keep theirs.
_KNOWN = (
    "PGD", "FGSM", "Square", "DeepFool", "APGD", "FAB",
    "AutoAttack", "CarliniWagnerL2", "FMN", "HopSkipJump", "Suite", "MinimumNorm",
    "BIM", "FGM", "SparsePGD", "DDN", "SigmaZero", "JSMA",
    "Transfer", "Cascade", "SparseRS", "LBFGS", "RandomNoise", "Adaptive",
)  # fmt: skip
COLORS = 6  # of `style.css`, distinct also for color-blind readers
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "plus", "down")


class LineStyle(NamedTuple):
    """Look of a line: number of its color, `stroke-dasharray` of SVG, and name of its marker."""

    color: int
    dash: str
    marker: str


def line_style(attack: str, variant: int = 0) -> LineStyle:
    """Return the look of an attack; its `variant`, with other settings, has another marker.

    Example:
        >>> line_style("PGD")
        LineStyle(color=0, dash='', marker='circle')
    """
    known = attack in _KNOWN
    number = _KNOWN.index(attack) if known else zlib.crc32(attack.encode()) % len(_KNOWN)
    row, color = divmod(number, COLORS)
    dash = DASHES[(row + variant) % len(DASHES)]
    return LineStyle(color, dash, MARKERS[(color + row + variant) % len(MARKERS)])
