"""Victim model of MRR: conversion and batched prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advkit.core import sample_rows
from advkit.models import TorchClassifier, as_classifier, evaluating

BATCH_SIZE = 128  # inputs in one forward pass of the victim or of all defenders


def as_victim(model: object) -> TorchClassifier:
    """Return `model` as a classifier whose layers can be copied.

    Raises:
        TypeError: it has no such layers.
    """
    victim = as_classifier(model)
    if not isinstance(victim, TorchClassifier):
        raise TypeError(
            "`model` must be an nn.Module or a TorchClassifier, whose layers can be copied, "
            f"got {model!r}."
        )
    if any(isinstance(part, torch.jit.ScriptModule) for part in victim.module.modules()):
        raise no_layers_error(victim.module)
    return victim


def no_layers_error(module: nn.Module) -> TypeError:
    """Return the error for a module whose layers are compiled away."""
    return TypeError(
        "`model` must be an nn.Module that runs its layers one by one, got "
        f"{type(module).__name__}. Scripted and exported modules do not run layers one by one. "
        "Fit MRR on the original module."
    )


def predict_labels(victim: TorchClassifier, x: Tensor) -> Tensor:
    """Return the victim's predictions `(n,)`, int64, computed in batches."""
    with evaluating(victim):
        return sample_rows.in_parts(victim.predict, x, size=BATCH_SIZE)
