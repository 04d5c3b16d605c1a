"""Fit of the latent defenders at all layers, one after another, with a checkpoint."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from torch import Tensor

from advkit.core.file_lock import locked
from advkit.defenses.mrr.latent import LatentDefender, LatentModules, fit_latent
from advkit.defenses.mrr.latent_settings import LatentDefenders
from advkit.defenses.mrr.storage import Checkpoint
from advkit.models import TorchClassifier


def fit_layers(
    layers: Sequence[LatentDefenders],
    victim: TorchClassifier,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool,
) -> tuple[LatentModules, ...]:
    """Fit the latent defenders of each layer, continuing from the checkpoint.

    Args:
        layers: settings of the layers.
        victim: the model that is copied.
        x: clean inputs `(n, *features)`.
        y: true labels `(n,)`.
        seed: seed of the order of the training inputs.
        checkpoint: path of a file that is replaced after each defender; `None` saves nothing.
        progress: write a line for each defender to standard error.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to another fit.
        RuntimeError: another run uses the checkpoint.
        OSError: the checkpoint cannot be written or read.
    """
    with locked(checkpoint):
        saved = Checkpoint(checkpoint, layers, seed, victim, x, y)
        return tuple(
            fit_latent(
                layer,
                victim,
                x,
                y,
                seed=seed,
                saved=saved.weights(i),
                on_fitted=_SaveAndReport(saved, i, layer, progress),
            )
            for i, layer in enumerate(layers)
        )


class _SaveAndReport:
    """Callback that saves each defender of a layer once it is fitted, and reports progress.

    Args:
        saved: the checkpoint.
        index: index of the layer among all layers.
        layer: settings of the layer.
        progress: write a line for each defender to standard error.
    """

    def __init__(
        self, saved: Checkpoint, index: int, layer: LatentDefenders, progress: bool
    ) -> None:
        self.saved, self.index, self.layer, self.progress = saved, index, layer, progress
        self.count = len(saved.weights(index))
        self.started = time.perf_counter()

    def __call__(self, defender: LatentDefender) -> None:
        """Save `defender`, the next one of the layer."""
        self.saved.add(self.index, defender)
        self.count += 1
        if not self.progress:
            return
        seconds, self.started = time.perf_counter() - self.started, time.perf_counter()
        name = defender.tapped.tap.layer
        line = f"defender {self.count} of {self.layer.count} at {name}: {seconds:.0f} s"
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
