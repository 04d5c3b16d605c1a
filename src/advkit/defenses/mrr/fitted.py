"""What a fit leaves: modules, and what is known of clean inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from advkit.core import checks, sample_rows
from advkit.core.content import check_shape
from advkit.defenses.mrr.calibration import Calibration, calibrated
from advkit.defenses.mrr.dictionaries import InputDictionaries
from advkit.defenses.mrr.latent import LatentModules
from advkit.defenses.mrr.victim import BATCH, answers
from advkit.models import TorchClassifier


class Modules(Protocol):
    """Fitted defenders that look at a batch together."""

    @property
    def count(self) -> int:
        """Distances for each input."""
        ...

    def distances(self, x: Tensor, labels: Tensor) -> Tensor:
        """How far `x` `(n, *features)` is from clean inputs of the classes `labels`, `(n, count)`.

        Differentiable; infinite for a class without clean inputs.
        """
        ...

    def features(self, x: Tensor) -> Tensor:
        """What can be matched of another input, `(n, width)`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """What a fit leaves.

    Attributes:
        victim: the model that was copied, untouched.
        latent: the defenders of each layer.
        inputs: the dictionaries, if there are any.
        calibration: of all defenders, the latent ones first.
        clean: float64 `(m, defenders)`, scores of clean inputs that nothing else was fitted on, for
            the threshold of all defenders together; none of them when calibrated on the fit's own.
    """

    victim: TorchClassifier
    latent: tuple[LatentModules, ...]
    inputs: InputDictionaries | None
    calibration: Calibration
    clean: Tensor

    def check(self) -> None:
        """Raise ValueError unless calibration and clean scores are those of the defenders.

        For tensors from a file, which may be damaged or made to do damage.
        """
        defenders = sum(own.count for own in self.modules)
        self.calibration.check(defenders, len(self.calibration.counts))
        check_shape("clean", self.clean, torch.float64, (len(self.clean), defenders))
        if not bool(((self.clean >= 0) & (self.clean <= 1)).all()):
            raise ValueError("`clean` must hold scores in [0, 1]")

    @property
    def modules(self) -> tuple[Modules, ...]:
        """All of them."""
        return (*self.latent, *(() if self.inputs is None else (self.inputs,)))

    def distances(self, x: Tensor, labels: Tensor) -> Tensor:
        """Of all defenders, `(n, defenders)`, differentiable."""
        return _side_by_side(self.modules, x, labels)

    def scores(self, x: Tensor, labels: Tensor) -> Tensor:
        """Of all defenders, `(n, defenders)`, float64, a batch at a time.

        Raises:
            ValueError: a distance is NaN, which would pass as a clean input.
        """
        distances = sample_rows.in_parts(self.distances, x, labels, size=BATCH)
        bad = distances.isnan().any(1)
        if bad.any():
            raise ValueError(f"the defenders returned NaN for sample {checks.indices(bad)}")
        pairs = _batches(distances, labels)
        return torch.cat([self.calibration.scores(a, b) for a, b in pairs])

    def labels(self, x: Tensor, given: Tensor | None) -> Tensor:
        """Return the victim's labels of `x` `(n,)`: those given, checked, or its predictions."""
        if given is None:
            return answers(self.victim, x)
        labels = checks.labels("labels", given, x)
        rows = torch.arange(len(x), device=x.device)
        checks.labels_within("labels", labels, len(self.calibration.counts), rows)
        return labels

    def first(self, count: int, *, inputs: bool) -> Fitted:
        """With the first `count` latent defenders of each layer; dictionaries only if `inputs`."""
        kept, at = list[int](), 0
        for own in self.latent:
            kept += range(at, at + count)
            at += own.count
        if inputs:
            kept += range(at, self.clean.shape[1])
        return replace(
            self,
            latent=tuple(own.first(count) for own in self.latent),
            inputs=self.inputs if inputs else None,
            calibration=self.calibration.take(kept),
            clean=self.clean[:, kept],
        )


def calibrated_on(
    victim: TorchClassifier,
    latent: tuple[LatentModules, ...],
    inputs: InputDictionaries | None,
    scale: Tensor,
    decide: Tensor,
) -> Fitted:
    """The modules with scores by the clean inputs `scale`, and those of the inputs `decide`."""
    modules: tuple[Modules, ...] = latent if inputs is None else (*latent, inputs)
    labels = answers(victim, scale)
    distances = torch.cat([_side_by_side(modules, a, b) for a, b in _batches(scale, labels)])
    fitted = Fitted(
        victim=victim,
        latent=latent,
        inputs=inputs,
        calibration=calibrated(distances, labels, victim.num_classes),
        clean=distances[:0].double(),
    )
    return replace(fitted, clean=fitted.scores(decide, answers(victim, decide)))


def _side_by_side(modules: tuple[Modules, ...], x: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([own.distances(x, labels) for own in modules], dim=1)


def _batches(x: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(torch.split(x, BATCH), torch.split(labels, BATCH), strict=True)
