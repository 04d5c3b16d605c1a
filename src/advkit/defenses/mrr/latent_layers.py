"""The fit of the latent defenders at all layers, one after another, with its checkpoint."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from torch import Tensor

from advkit.core.file_lock import locked
from advkit.defenses.mrr.latent import LatentDefender, LatentDefenders, LatentModules, fit_latent
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
    """Fit the latent defenders of each layer, from those in the checkpoint on.

    Args:
        layers: settings of the layers.
        victim: the model that is copied.
        x: clean inputs `(n, *features)`.
        y: true labels `(n,)`.
        seed: of the orders in which inputs are seen.
        checkpoint: path of a file that is replaced after each defender; `None` keeps nothing.
        progress: write a line for each defender to standard error.

    Raises:
        ValueError: the checkpoint is damaged, or of another fit.
        RuntimeError: another run uses the checkpoint.
        OSError: the checkpoint cannot be written or read.
    """
    with locked(checkpoint):
        kept = Checkpoint(checkpoint, layers, seed, victim, x, y)
        return tuple(
            fit_latent(
                own,
                victim,
                x,
                y,
                seed=seed,
                saved=kept.weights(i),
                done=_Progress(kept, i, own, progress),
            )
            for i, own in enumerate(layers)
        )


class _Progress:
    """A function that keeps each defender of a layer once it is fitted, and writes a line.

    Args:
        kept: the checkpoint.
        index: of the layer among all layers.
        layer: its settings.
        progress: write a line for each defender to standard error.
    """

    def __init__(
        self, kept: Checkpoint, index: int, layer: LatentDefenders, progress: bool
    ) -> None:
        self.kept, self.index, self.layer, self.progress = kept, index, layer, progress
        self.count = len(kept.weights(index))
        self.began = time.perf_counter()

    def __call__(self, defender: LatentDefender) -> None:
        """Keep `defender`, the next one of the layer."""
        self.kept.add(self.index, defender)
        self.count += 1
        if not self.progress:
            return
        seconds, self.began = time.perf_counter() - self.began, time.perf_counter()
        where = defender.tapped.tap.layer
        line = f"defender {self.count} of {self.layer.count} at {where}: {seconds:.0f} s"
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
