"""An exponential moving average of the weights of a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from advkit.core import checks


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of `model` with averaged weights, which is updated after each step."""
    checks.fraction("ema", decay, "(0, 1)")

    @torch.no_grad()
    def move(averaged: Sequence[Tensor], current: Sequence[Tensor], _: object) -> None:
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point() or old.is_complex():
                old.lerp_(new, 1 - decay)
            else:  # counters and masks have no average
                old.copy_(new)

    return AveragedModel(model, multi_avg_fn=move, use_buffers=True)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Set the parameters and buffers of `target` to those of `source`."""
    new = chain(source.parameters(), source.buffers())
    old = chain(target.parameters(), target.buffers())
    for to, value in zip(old, new, strict=True):
        to.copy_(value)
