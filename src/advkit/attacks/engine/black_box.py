"""Attacks that need no gradients: what they see of a model, and the judgement by its labels."""

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


class _ModelView(HasInnerModel):
    """A classifier whose answers stand where logits do: the largest wins, without gradients."""

    def __init__(self, model: Classifier) -> None:
        self.model = model

    def predict(self, x: Tensor) -> Tensor:
        """As the model."""
        labels: Tensor = self.model.predict(x)
        return labels


class ByScores(_ModelView):
    """What an attack on scores sees."""

    def logits(self, x: Tensor) -> Tensor:
        """Logits where the model has them, since probabilities saturate, else its scores."""
        found: Tensor
        if callable(getattr(self.model, "logits", None)):
            found = self.model.logits(x)
        else:
            found = self.model.scores(x).double()
        return found.detach()


class ByLabels(_ModelView):
    """What an attack on labels sees: one at the label, zero elsewhere.

    A row of NaN is an answer that the model failed to give, one of minus infinity a rejection.
    """

    def logits(self, x: Tensor) -> Tensor:
        """One-hot labels."""
        if not callable(getattr(self.model, "logits", None)):
            return self._one_hot(self.model.predict(x))
        # `predict` raises at a NaN, which is no reason to lose what was found
        logits = self.model.logits(x).detach()
        known = logits.isfinite().all(1, keepdim=True)
        return self._one_hot(logits.argmax(1), logits.shape[1]).where(known, torch.nan)

    def _one_hot(self, labels: Tensor, classes: int | None = None) -> Tensor:
        rejected = labels == REJECTED
        one_hot = F.one_hot(labels.masked_fill(rejected, 0), classes or self.num_classes)
        return one_hot.float().masked_fill(rejected[:, None], -math.inf)


def by_scores(obj: object, wanted_by: str) -> ByScores:
    """`obj` as the attack on scores named `wanted_by` sees it.

    Raises:
        TypeError: it is no classifier, or has no scores.
    """
    model = as_classifier(obj)
    if callable(getattr(model, "logits", None)) or callable(getattr(model, "scores", None)):
        return ByScores(model)
    raise TypeError(
        f"{wanted_by} needs scores, so a ScoreClassifier (scores(x)) or logits; "
        f"{type(model).__name__} is a Classifier that gives labels only. Use HopSkipJump, or "
        "Transfer(attack=..., surrogate=...) from a differentiable model"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class BlackBoxAttack(BaseAttack):
    """Base of the attacks that need no gradients, judged by what the model predicts."""

    def _adapt_model(self, model: object) -> ByScores | ByLabels:
        return ByLabels(as_classifier(model))

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        return margin

    def _verify(self, problem: Problem, found: Best | Nearest) -> Best:
        verified = Best(found.x_adv, self._decision_problem(problem).violation(found.x_adv))
        if not problem.statistics.sender.whole:  # there, another batch has other answers
            warn_of_random_labels(found, verified)
        return verified

    def _decision_problem(self, problem: Problem) -> Problem:
        """Return `problem` as the model's labels decide it."""
        view = problem.model
        return problem.with_model(ByLabels(view.model)) if isinstance(view, ByScores) else problem


def warn_of_random_labels(found: Best | Nearest, verified: Best) -> None:
    """Warn if the model labels differently what it has labelled before."""
    changed = (verified.success != found.success) & found.violation.isfinite()
    if changed.any():
        checks.warn(
            f"the model labelled {int(changed.sum())} of {len(changed)} inputs differently "
            "when asked again: it is random, or its labels are not those of its highest "
            "scores. Success is its last answer; attack its expectation instead",
            InconclusiveWarning,
        )
