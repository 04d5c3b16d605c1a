"""Fitted state of MRR: its modules and their calibration on clean inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from advkit.core import checks, label_checks, sample_rows
from advkit.core.content import check_shape
from advkit.defenses.mrr.calibration import Calibration, fit_calibration
from advkit.defenses.mrr.dictionaries import InputDictionaries
from advkit.defenses.mrr.latent import LatentModules
from advkit.defenses.mrr.victim import BATCH_SIZE, predict_labels
from advkit.models import TorchClassifier


class Modules(Protocol):
    """Fitted defenders that are evaluated together."""

    @property
    def count(self) -> int:
        """Number of distances for each input."""
        ...

    def distances(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the distances `(n, count)` of `x` to clean inputs of the classes `labels`.

        They are differentiable, and infinite for a class without clean inputs.

        Args:
            x: inputs `(n, *features)`.
            labels: classes `(n,)`.
        """
        ...

    def features(self, x: Tensor) -> Tensor:
        """Return the features `(n, width)` that an attack can match to those of another input."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """Fitted state of MRR.

    Attributes:
        victim: the original model, unchanged.
        latent: the defenders of each layer.
        inputs: the dictionaries, if there are any.
        calibration: calibration of all defenders, the latent ones first.
        clean: float64 `(m, defenders)`, scores of clean inputs that were not used in the fit, for
            the joint threshold. It is empty if the scores are calibrated on the training data.
    """

    victim: TorchClassifier
    latent: tuple[LatentModules, ...]
    inputs: InputDictionaries | None
    calibration: Calibration
    clean: Tensor

    def check(self) -> None:
        """Raise ValueError unless calibration and clean scores match the defenders.

        It checks tensors from a file, which may be damaged or malicious.
        """
        defenders = sum(module.count for module in self.modules)
        self.calibration.check(defenders, len(self.calibration.counts))
        check_shape("clean", self.clean, torch.float64, (len(self.clean), defenders))
        if not bool(((self.clean >= 0) & (self.clean <= 1)).all()):
            raise ValueError("`clean` must hold scores in [0, 1].")

    @property
    def modules(self) -> tuple[Modules, ...]:
        """All defenders, the latent ones first."""
        return (*self.latent, *(() if self.inputs is None else (self.inputs,)))

    def distances(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the distances of all defenders, `(n, defenders)`, differentiable."""
        return _concatenate_distances(self.modules, x, labels)

    def scores(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the scores of all defenders, `(n, defenders)`, float64, computed in batches.

        Raises:
            ValueError: a distance is NaN, which would otherwise pass as a clean input.
        """
        distances = sample_rows.in_parts(self.distances, x, labels, size=BATCH_SIZE)
        bad = distances.isnan().any(1)
        if bad.any():
            raise ValueError(
                f"`model` must give defenders finite distances, got NaN ({checks.samples(bad)}). "
                "Check its weights and the range of `x`."
            )
        pairs = _batches(distances, labels)
        return torch.cat([self.calibration.scores(a, b) for a, b in pairs])

    def labels(self, x: Tensor, given: Tensor | None) -> Tensor:
        """Return the labels `given` for `x`, once checked, or else the victim's predictions."""
        if given is None:
            return predict_labels(self.victim, x)
        labels = label_checks.labels("labels", given, x)
        rows = torch.arange(len(x), device=x.device)
        label_checks.labels_within("labels", labels, len(self.calibration.counts), rows)
        return labels

    def first(self, count: int, *, inputs: bool) -> Fitted:
        """Keep `count` latent defenders of each layer, and the dictionaries only if `inputs`."""
        defenders, start = list[int](), 0
        for module in self.latent:
            defenders += range(start, start + count)
            start += module.count
        if inputs:
            defenders += range(start, self.clean.shape[1])
        return replace(
            self,
            latent=tuple(module.first(count) for module in self.latent),
            inputs=self.inputs if inputs else None,
            calibration=self.calibration.select(defenders),
            clean=self.clean[:, defenders],
        )


def calibrate_modules(
    victim: TorchClassifier,
    latent: tuple[LatentModules, ...],
    inputs: InputDictionaries | None,
    score_inputs: Tensor,
    threshold_inputs: Tensor,
) -> Fitted:
    """Return the fitted state, with scores calibrated on clean inputs.

    Args:
        victim: the model.
        latent: the defenders of each layer.
        inputs: the dictionaries, if there are any.
        score_inputs: clean inputs to calibrate the scores on.
        threshold_inputs: clean inputs whose scores set the threshold.
    """
    modules: tuple[Modules, ...] = latent if inputs is None else (*latent, inputs)
    labels = predict_labels(victim, score_inputs)
    distances = torch.cat(
        [_concatenate_distances(modules, a, b) for a, b in _batches(score_inputs, labels)]
    )
    fitted = Fitted(
        victim=victim,
        latent=latent,
        inputs=inputs,
        calibration=fit_calibration(distances, labels, victim.num_classes),
        clean=distances[:0].double(),
    )
    return replace(
        fitted, clean=fitted.scores(threshold_inputs, predict_labels(victim, threshold_inputs))
    )


def _concatenate_distances(modules: tuple[Modules, ...], x: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([module.distances(x, labels) for module in modules], dim=1)


def _batches(x: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(torch.split(x, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)
