"""The victim: the model that is copied, and its labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advkit.core import sample_rows
from advkit.models import TorchClassifier, as_classifier, evaluating

BATCH = 128  # inputs that are sent through a model at once


def as_victim(model: object) -> TorchClassifier:
    """Return `model` as a classifier whose layers can be copied.

    Raises:
        TypeError: it has no such layers.
    """
    victim = as_classifier(model)
    if not isinstance(victim, TorchClassifier):
        raise TypeError(
            "`model` must be an nn.Module or a TorchClassifier, whose layers can be copied, "
            f"got {model!r}"
        )
    if any(isinstance(part, torch.jit.ScriptModule) for part in victim.module.modules()):
        raise without_layers(victim.module)
    return victim


def without_layers(module: nn.Module) -> TypeError:
    """Return the error for a module whose layers are compiled away."""
    return TypeError(
        "`model` must be an nn.Module that runs its layers one by one, got "
        f"{type(module).__name__}, which does not, as scripted and exported modules. Fit MRR on "
        "the module that it was made from."
    )


def answers(victim: TorchClassifier, x: Tensor) -> Tensor:
    """Return the victim's labels, int64 `(n,)`, a batch at a time."""
    with evaluating(victim):
        return sample_rows.in_parts(victim.predict, x, size=BATCH)
