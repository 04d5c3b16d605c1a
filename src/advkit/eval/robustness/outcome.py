"""Outcome of one attack, input by input, and the figures derived from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advkit.core.hyperparameters import format_call, to_plain
from advkit.eval.accuracy import Rate
from advkit.eval.budgets import format_budget
from advkit.eval.units.examples import Examples

# Relative excess of a distance over a budget that still counts as within it. It allows for rounding
# in float32, whose relative spacing is 1.2e-7.
DISTANCE_TOLERANCE = 1e-6
_FALSE_BY_DEFAULT = ("no_start", "rejected", "improving", "success_lost", "rounded", "undone")
_DEFAULTS: dict[str, tuple[float, torch.dtype]] = {
    **dict.fromkeys(_FALSE_BY_DEFAULT, (False, torch.bool)),
    "prediction": (-1, torch.int64),
    "stage": (-1, torch.int64),
    "input_seconds": (0.0, torch.float64),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackOutcome:
    """Outcome of one attack on `n` inputs.

    Attributes:
        name: name of the attack.
        settings: hyperparameters of the attack that differ from their defaults.
        parameters: all hyperparameters of the attack; empty if left out.
        norm: norm of `distance`.
        minimum_norm: true if the attack has no budget and searches for the nearest adversarial
            example at any distance.
        eps: the budget in input units; `None` for a minimum-norm attack, and for a budget attack
            with one budget for each sample.
        radius: float64 `(n,)`; the budget of each input, inf for a minimum-norm attack and zero for
            inputs that were not attacked.
        robust: bool `(n,)`; labeled correctly before and after the attack.
        distance: `(n,)`; distance of the adversarial examples, NaN for inputs without one.
        forward: int64 `(n,)`; forward passes of the input, zero for inputs that were not attacked.
        backward: int64 `(n,)`; backward passes of the input, zero for inputs not attacked.
        no_gradient: bool `(n,)`; the attack failed and had no usable gradient.
        not_finite: bool `(n,)`; the attack failed and the model returned NaN or infinite logits.
        no_start: bool `(n,)`; the attack failed because its search could not begin. All false if
            left out, like the next five.
        rejected: bool `(n,)`; the attack failed and the model rejected an iterate.
        improving: bool `(n,)`; the attack failed while its margin still shrank: see `AttackResult`.
        success_lost: bool `(n,)`; the attack failed at its last iterate, and an earlier one was a
            success.
        rounded: bool `(n,)`; a success that was rounded to bytes and evaluated again.
        undone: bool `(n,)`; a success that the rounding undoes.
        prediction: int64 `(n,)`; predicted label of the adversarial example, -1 without one. All -1
            if left out.
        stage: int64 `(n,)`; number of the attack inside a `Suite`, `AutoAttack` or `Cascade` that
            succeeded, -1 without one. All -1 if left out.
        input_seconds: float64 `(n,)`; time of the unit of work that the input was part of,
            divided by its attacked inputs; zero for inputs that were not attacked. All zero if left
            out.
        seconds: time of the attack alone.
        examples: a few of the nearest adversarial examples, `None` if there are none.
    """

    name: str
    settings: dict[str, object]
    norm: str
    minimum_norm: bool
    eps: float | None
    radius: Tensor
    robust: Tensor
    distance: Tensor
    forward: Tensor
    backward: Tensor
    no_gradient: Tensor
    not_finite: Tensor
    seconds: float
    examples: Examples | None
    no_start: Tensor = None  # type: ignore[assignment]  # set below, like the next ones
    rejected: Tensor = None  # type: ignore[assignment]
    improving: Tensor = None  # type: ignore[assignment]
    success_lost: Tensor = None  # type: ignore[assignment]
    rounded: Tensor = None  # type: ignore[assignment]
    undone: Tensor = None  # type: ignore[assignment]
    prediction: Tensor = None  # type: ignore[assignment]
    stage: Tensor = None  # type: ignore[assignment]
    input_seconds: Tensor = None  # type: ignore[assignment]
    parameters: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (value, dtype) in _DEFAULTS.items():
            if getattr(self, name) is None:
                column = torch.full_like(self.robust, value, dtype=dtype)
                object.__setattr__(self, name, column)

    @property
    def label(self) -> str:
        """Call that creates the attack."""
        return format_call(self.name, self.settings)

    @property
    def family(self) -> str:
        """Call that creates the attack, without its budget and norm: the name of a curve."""
        rest = {k: v for k, v in self.settings.items() if k not in ("eps", "norm")}
        return format_call(self.name, rest) if rest else self.name

    @property
    def budget(self) -> str:
        """Norm and `eps` as text, empty for a minimum-norm attack."""
        return "" if self.minimum_norm else format_budget(self.norm, self.eps)

    @property
    def success(self) -> Tensor:
        """Bool `(n,)`; labeled correctly before the attack, but not after it."""
        return ~self.distance.isnan()

    @property
    def attacked(self) -> Tensor:
        """Bool `(n,)`; labeled correctly before the attack, and therefore attacked."""
        return self.robust | self.success

    @property
    def robust_accuracy(self) -> Rate:
        """Share of all inputs that are labeled correctly before and after this attack."""
        return Rate.of(self.robust)

    @property
    def success_rate(self) -> Rate:
        """Attack success rate: share of the attacked inputs that become misclassified."""
        return Rate.of(self.success[self.attacked])

    @property
    def median_distance(self) -> float | None:
        """Lower median over the attacked inputs, a failure counted as inf; `None` for no inputs."""
        return median(self.distance[self.attacked])

    def within(self, radius: Tensor) -> Tensor:
        """Return a mask `(n,)` of the inputs with an adversarial example within `radius` `(n,)`."""
        return self.distance.double() <= radius * (1 + DISTANCE_TOLERANCE)

    def mean_of_attacked(self, counts: Tensor) -> float | None:
        """Return the mean of `forward` or `backward` over the attacked inputs, `None` for none."""
        return float(counts[self.attacked].double().mean()) if self.attacked.any() else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which has no infinity.

        `robust_accuracy` is `None` for a minimum-norm attack. `median_distance_of_attacked` is
        `None` if the median is infinite, because `success_rate` is below one half. It is also
        `None` if no input was attacked; the `total` of `success_rate` is then 0.
        `inputs_not_finite` holds the numbers of the inputs.
        """
        return {
            "attack": self.label,
            "name": self.name,
            "settings": to_plain(self.settings)["dict"],
            "parameters": to_plain(self.parameters)["dict"],
            "norm": self.norm,
            "minimum_norm": self.minimum_norm,
            "eps": self.eps,
            "robust_accuracy": None if self.minimum_norm else self.robust_accuracy.to_dict(),
            "success_rate": self.success_rate.to_dict(),
            "median_distance_of_attacked": finite(self.median_distance),
            "forward_per_attacked_input": self.mean_of_attacked(self.forward),
            "backward_per_attacked_input": self.mean_of_attacked(self.backward),
            "inputs_without_gradient": int(self.no_gradient.sum()),
            "inputs_without_start": int(self.no_start.sum()),
            "inputs_rejected": int(self.rejected.sum()),
            "inputs_improving": int(self.improving.sum()),
            "inputs_with_success_lost": int(self.success_lost.sum()),
            "successes_undone_by_rounding": Rate(
                int(self.undone.sum()), int(self.rounded.sum())
            ).to_dict(),
            "inputs_not_finite": self.not_finite.nonzero().flatten().tolist(),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class NearestExamples:
    """Nearest adversarial examples of several attacks, input by input.

    Attributes:
        attacks: number of attacks.
        success_rate: share of the attacked inputs with an adversarial example of any attack.
        median_distance: lower median over the attacked inputs, an input without an adversarial
            example counted as inf; `None` if no input was attacked.
    """

    attacks: int
    success_rate: Rate
    median_distance: float | None

    @staticmethod
    def of(outcomes: Sequence[AttackOutcome]) -> NearestExamples:
        """Combine `outcomes`, at least one, whose distances are in the same norm."""
        distance = outcomes[0].distance
        for outcome in outcomes[1:]:
            distance = distance.fmin(outcome.distance)
        distance = distance[outcomes[0].attacked]
        return NearestExamples(len(outcomes), Rate.of(~distance.isnan()), median(distance))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `None` stands for an infinite or missing distance."""
        return {
            "success_rate": self.success_rate.to_dict(),
            "median_distance_of_attacked": finite(self.median_distance),
        }


def median(distance: Tensor) -> float | None:
    """Return the lower median of `distance` `(n,)`, NaN counted as inf; `None` for no values."""
    if not len(distance):
        return None
    return float(torch.where(distance.isnan(), math.inf, distance).median())


def finite(value: float | None) -> float | None:
    """Return `value`, or `None` for infinity."""
    return None if value is None or math.isinf(value) else value


def number_or_none(value: float | None) -> float | None:
    """Return `value`, or `None` for NaN."""
    return None if value is None or math.isnan(value) else value
