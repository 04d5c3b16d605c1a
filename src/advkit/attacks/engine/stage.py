"""Stages of Suite: an attack, and the condition for a sample to get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.core.protocols import Attack

PROBE = 2  # number of the stage that finds out whether gradients mislead


class Stage(NamedTuple):
    """An attack, and the condition for a sample to get it.

    The violation must be below `share` of that before stage `since`, which is the clean one for
    stage 0. Without a finite one, as for a clean input that the model rejects, every sample gets
    the stage.
    """

    attack: Attack
    share: float | None = None  # None for all samples
    since: int = 0
    misled: bool = False  # only for samples whose gradients mislead

    def selects(self, violations: Sequence[Tensor]) -> Tensor:
        """Return a mask `(n,)` of the samples that get the stage; see `StagedAttack._selected`."""
        if self.misled:
            return _misled(violations)
        if self.share is None:
            return torch.ones_like(violations[0], dtype=torch.bool)
        reference = violations[self.since]
        return (violations[-1] < self.share * reference) | ~reference.isfinite()


def _misled(violations: Sequence[Tensor]) -> Tensor:
    """Return a mask `(n,)` of the samples for which gradients were of no use.

    The attacks with gradients found no iterate better than the clean input, or random search found
    a better one. On a model without gradients nothing was found before the probe.
    """
    clean, before, after = violations[0], violations[PROBE], violations[PROBE + 1]
    return (after < before) | ~(before < clean)
