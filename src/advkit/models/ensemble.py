"""Ensembles of classifiers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.bounds import Bounds
from advkit.models.convert import as_classifier
from advkit.models.labels import check_same_labels, label_values
from advkit.models.protocols import (
    REJECTED,
    Classifier,
    evaluating,
    max_batch,
    may_interrupt,
)

Forward = Callable[[Tensor], Tensor]
Combine = Literal["logits", "probabilities", "vote"]


class Ensemble:
    """Classifier that combines the outputs of several classifiers.

    It has `logits`, and thus gradients, if all members have them and it is not a vote. An attack on
    it is an attack on all members at once. Threads may share it if they may share each member.

    Args:
        models: classifiers, modules or fitted estimators, with the same bounds and classes.
        combine: what is averaged: `"logits"`; `"probabilities"`, the softmax of a member's logits
            or, without logits, its scores; or `"vote"`, one vote for each member's label. A
            rejection is a vote for rejecting, which the ensemble's scores leave out. Ties go to
            rejecting, otherwise to the lowest class.

    Attributes:
        models: the members, as classifiers.
        combine: the argument.

    Raises:
        TypeError: a member lacks the outputs to be combined, or is not a classifier.
        ValueError: there are no members, or they differ in bounds or in the number of classes.

    Example:
        >>> import torch, advkit
        >>> nets = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
        >>> model = advkit.Ensemble(nets, combine="probabilities")
        >>> x = torch.rand(2, 4)
        >>> advkit.attacks.FGSM(eps=0.1)(model, x).shape, model.scores(x).shape
        (torch.Size([2, 4]), torch.Size([2, 3]))
    """

    def __init__(self, models: Sequence[object], combine: Combine = "logits") -> None:
        checks.one_of("combine", combine, ("logits", "probabilities", "vote"))
        if not isinstance(models, (Sequence, nn.ModuleList)):
            raise TypeError(f"`models` must be a list of models, got {type(models).__name__}.")
        if not len(models):
            raise ValueError("`models` must hold at least one model, got none.")
        self.models: tuple[Any, ...] = tuple(map(as_classifier, models))
        self.combine: Combine = combine
        _check_compatible(self.models)
        _check_outputs(self.models, combine)

    def __repr__(self) -> str:
        return f"Ensemble({len(self.models)} models, combine={self.combine!r})"

    @property
    def bounds(self) -> Bounds:
        """Valid feature values, the same for all members."""
        bounds: Bounds = self.models[0].bounds
        return bounds

    @property
    def num_classes(self) -> int:
        """Number of classes.

        Raises:
            ValueError: no member knows it before its first pass.
        """
        known = [count for model in self.models if (count := _num_classes(model)) is not None]
        first: int = known[0] if known else self.models[0].num_classes
        return first

    @property
    def label_values(self) -> Tensor | None:
        """Labels `(num_classes,)` that name the classes; `None` if their indices do."""
        return label_values(self.models[0])

    @property
    def max_batch(self) -> int | None:
        """Maximum number of samples in one call of each member; `None` for no limit."""
        return min((size for model in self.models if (size := max_batch(model))), default=None)

    @property
    def may_interrupt(self) -> bool:
        """True if a call may raise `AttackInterrupted` because a member may."""
        return any(map(may_interrupt, self.models))

    @property
    def logits(self) -> Forward:
        """Function from `x` `(n, *features)` to logits `(n, num_classes)`, differentiable.

        They are the mean of the members' logits, or the logarithm of the mean of their softmaxes.
        The function raises ValueError if members differ in the number of classes.

        Raises:
            AttributeError: the ensemble is a vote, or a member has no logits.
        """
        if self.combine == "vote" or not all(hasattr(model, "logits") for model in self.models):
            raise AttributeError(f"{self!r} has no logits: it is a vote, or a member has none.")
        return self._logits

    def evaluating(self) -> ExitStack:
        """Return a context for many calls, which saves and restores each member's state once."""
        with ExitStack() as stack:
            for model in self.models:
                stack.enter_context(evaluating(model))
            return stack.pop_all()

    def scores(self, x: Tensor) -> Tensor:
        """Return probabilities, or the fractions of the votes, `(n, num_classes)`, detached.

        Raises:
            ValueError: logits are not finite, scores of a member are not probabilities, or members
                differ in the number of classes.
        """
        with torch.no_grad():
            if self.combine == "logits":
                return self._finite_logits(x).softmax(1)
            if self.combine == "vote":
                return self._votes(x)[:, 1:]
            return _stack([self._probabilities(i, x) for i in range(len(self.models))]).mean(0)

    def predict(self, x: Tensor) -> Tensor:
        """Return labels `(n,)`, int64.

        Raises:
            ValueError: logits are not finite, scores of a member are not probabilities, or members
                differ in the number of classes.
        """
        with torch.no_grad():
            if self.combine == "vote":
                return self._votes(x).argmax(1) + REJECTED
            outputs = self._finite_logits(x) if hasattr(self, "logits") else self.scores(x)
            return outputs.argmax(1)

    def _logits(self, x: Tensor) -> Tensor:
        return self._combine_logits(self._member_logits(x))

    def _member_logits(self, x: Tensor) -> Tensor:
        """Return the members' logits, `(members, n, classes)`."""
        return _stack([model.logits(x) for model in self.models])

    def _combine_logits(self, logits: Tensor) -> Tensor:
        """Return the logits `(n, classes)` of the ensemble from those of its members."""
        if self.combine == "logits":
            return logits.mean(0)
        return logits.log_softmax(2).logsumexp(0) - math.log(len(self.models))

    def _finite_logits(self, x: Tensor) -> Tensor:
        member_logits = self._member_logits(x)
        logits = self._combine_logits(member_logits)
        checks.finite_logits(logits)
        for logits_of_one in member_logits:
            checks.warn_of_probabilities(logits_of_one)
        return logits

    def _probabilities(self, i: int, x: Tensor) -> Tensor:
        model = self.models[i]
        if hasattr(model, "logits"):
            logits: Tensor = model.logits(x)
            checks.finite_logits(logits)
            checks.warn_of_probabilities(logits)
            return logits.softmax(1, torch.promote_types(logits.dtype, torch.float32))
        scores: Tensor = model.scores(x)
        rows = torch.arange(len(x), device=x.device)
        checks.probabilities(f"`models[{i}]`", scores, rows, "Use combine='vote'.")
        return scores

    def _votes(self, x: Tensor) -> Tensor:
        """Return the fractions of the votes, for rejecting and each class: `(n, 1 + classes)`."""
        labels = torch.stack([model.predict(x) for model in self.models])  # (members, n)
        votes = nn.functional.one_hot(labels - REJECTED, self.num_classes - REJECTED)
        return votes.to(torch.promote_types(x.dtype, torch.float32)).mean(0)


def _check_compatible(models: Sequence[Classifier]) -> None:
    """Raise ValueError unless the models have the same bounds, classes and labels."""
    bounds = {tuple(model.bounds): None for model in models}
    if len(bounds) > 1:
        raise ValueError(f"`models` must have the same bounds, got {list(bounds)}.")
    counts = {count: None for model in models if (count := _num_classes(model)) is not None}
    if len(counts) > 1:
        raise ValueError(f"`models` must have the same number of classes, got {list(counts)}.")
    check_same_labels(models)


def _check_outputs(models: Sequence[Classifier], combine: Combine) -> None:
    """Raise TypeError unless all models have the outputs that `combine` needs."""
    for i, model in enumerate(models):
        if combine == "logits" and not hasattr(model, "logits"):
            raise TypeError(
                "`models` must have logits for combine='logits', "
                f"got {model!r} (member {i}). Use combine='probabilities' or combine='vote'."
            )
        if combine == "probabilities" and not (
            hasattr(model, "logits") or hasattr(model, "scores")
        ):
            raise TypeError(
                "`models` must have logits or scores for combine='probabilities', "
                f"got {model!r} (member {i}). Use combine='vote'."
            )


def _num_classes(model: Classifier) -> int | None:
    """Return the number of classes; `None` if a network must run first."""
    try:
        return model.num_classes
    except ValueError:
        return None


def _stack(outputs: list[Tensor]) -> Tensor:
    """Stack outputs `(n, classes)` of members to `(members, n, classes)`, at least float32."""
    counts = {output.shape[1]: None for output in outputs}
    if len(counts) > 1:
        raise ValueError(f"`models` must have the same number of classes, got {list(counts)}.")
    dtypes = [torch.float32, *(output.dtype for output in outputs)]
    widest = functools.reduce(torch.promote_types, dtypes)
    return torch.stack([output.to(widest) for output in outputs])
