"""Base of the attacks without gradients: adapted models, and verification by labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from advkit.attacks.engine.base import BaseAttack
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.core import checks
from advkit.core.losses import Loss, margin
from advkit.core.results import InconclusiveWarning
from advkit.models import REJECTED, Classifier, as_classifier
from advkit.models.inner_model import HasInnerModel


class _AdaptedModel(HasInnerModel):
    """A classifier with another output as its `logits`, which have no gradients."""

    def __init__(self, model: Classifier) -> None:
        self.model = model

    def predict(self, x: Tensor) -> Tensor:
        """Return the labels `(n,)` that the model predicts."""
        labels: Tensor = self.model.predict(x)
        return labels


class ByScores(_AdaptedModel):
    """A model for attacks on scores."""

    def logits(self, x: Tensor) -> Tensor:
        """Return the model's logits, or its scores if it has none.

        Logits are preferred since probabilities saturate.
        """
        scores: Tensor
        if callable(getattr(self.model, "logits", None)):
            scores = self.model.logits(x)
        else:
            scores = self.model.scores(x).double()
        return scores.detach()


class ByLabels(_AdaptedModel):
    """A model for attacks on labels: its logits are one at the label and zero elsewhere.

    A row of NaN marks an invalid output of the model, a row of minus infinity a rejection.
    """

    def logits(self, x: Tensor) -> Tensor:
        """Return one-hot labels `(n, classes)`."""
        if not callable(getattr(self.model, "logits", None)):
            return self._one_hot(self.model.predict(x))
        # `predict` raises at a NaN, and the successes found so far would be lost
        logits = self.model.logits(x).detach()
        known = logits.isfinite().all(1, keepdim=True)
        return self._one_hot(logits.argmax(1), logits.shape[1]).where(known, torch.nan)

    def _one_hot(self, labels: Tensor, classes: int | None = None) -> Tensor:
        rejected = labels == REJECTED
        one_hot = F.one_hot(labels.masked_fill(rejected, 0), classes or self.num_classes)
        return one_hot.float().masked_fill(rejected[:, None], -math.inf)


def by_scores(obj: object, wanted_by: str) -> ByScores:
    """Return `obj` as a model for the attack on scores named `wanted_by`.

    Raises:
        TypeError: `obj` is not a classifier, or has no scores.
    """
    model = as_classifier(obj)
    if callable(getattr(model, "logits", None)) or callable(getattr(model, "scores", None)):
        return ByScores(model)
    raise TypeError(
        f"`model` must have scores (a ScoreClassifier, with scores(x)) or logits for {wanted_by}, "
        f"got {type(model).__name__}, a Classifier that predicts labels only. Use HopSkipJump, or "
        "Transfer(attack=..., surrogate=...) from a differentiable model."
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BlackBoxAttack(BaseAttack):
    """Base of the attacks without gradients, whose success the model's labels decide."""

    def _adapt_model(self, model: object) -> ByScores | ByLabels:
        return ByLabels(as_classifier(model))

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        return margin

    def _verify(self, problem: Problem, record: Best | Nearest) -> Best:
        verified = Best(record.x_adv, self._decision_problem(problem).violation(record.x_adv))
        if not problem.statistics.sender.whole:  # a whole batch has other outputs when it changes
            warn_of_random_labels(record, verified)
        return verified

    def _decision_problem(self, problem: Problem) -> Problem:
        """Return `problem` with the model's labels, which decide about success."""
        model = problem.model
        return problem.with_model(ByLabels(model.model)) if isinstance(model, ByScores) else problem


def warn_of_random_labels(record: Best | Nearest, verified: Best) -> None:
    """Warn if a second evaluation of the same inputs gives other labels."""
    changed = (verified.success != record.success) & record.violation.isfinite()
    if changed.any():
        checks.warn(
            f"The model predicted other labels for {int(changed.sum())} of {len(changed)} inputs "
            "when it was evaluated again. It is random, or its labels are not those of its highest "
            "scores. The last evaluation decides about success. Attack the expectation of the "
            "model instead.",
            InconclusiveWarning,
        )
