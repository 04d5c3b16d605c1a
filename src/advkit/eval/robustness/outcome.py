"""What one attack did, input by input, and the figures that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advkit.core.hyperparameters import format_call
from advkit.eval.accuracy import Rate
from advkit.eval.budgets import format_budget

_ROUNDING = 1e-6  # share by which a distance may exceed a budget and still lie within it


@dataclass(frozen=True, eq=False)
class Examples:
    """A few inputs that an attack has turned, for pictures.

    Attributes:
        x: clean `(k, *features)`, labelled correctly by the model.
        x_adv: adversarial `(k, *features)`.
        y: true labels `(k,)`, which are the model's answers to `x`.
        answer: the model's answers to `x_adv`, `(k,)`.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    answer: Tensor

    @staticmethod
    def join(parts: Sequence[Examples]) -> Examples | None:
        """All of `parts`, `None` for none."""
        if not parts:
            return None
        rows = ((part.x, part.x_adv, part.y, part.answer) for part in parts)
        return Examples(*(torch.cat(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackOutcome:
    """What one attack did to `n` inputs.

    Attributes:
        name: of the attack.
        settings: its hyper-parameters that are not at their defaults.
        norm: what `distance` is measured in.
        minimum_norm: whether the attack has no budget and looks for the nearest adversarial example
            at any distance.
        eps: its budget in input units; `None` for a minimum-norm attack, and for a budget attack
            with one for each sample.
        radius: float64 `(n,)`; the budget of each input, inf for a minimum-norm attack and zero for
            inputs that were never attacked.
        robust: bool `(n,)`; labelled correctly before and after.
        distance: `(n,)`; of the successes, NaN elsewhere.
        forward: int64 `(n,)`; samples sent forward, zero for inputs that were never attacked.
        backward: int64 `(n,)`; likewise backward.
        no_gradient: bool `(n,)`; not fooled, but without a usable gradient.
        not_finite: bool `(n,)`; not fooled, but the model returned NaN or infinite logits.
        no_start: bool `(n,)`; not fooled, but the search could not begin. Left out, it is false.
        seconds: the attack alone.
        examples: a few successes, `None` if there are none.
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
    no_start: Tensor = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if self.no_start is None:
            object.__setattr__(self, "no_start", torch.zeros_like(self.robust))

    @property
    def label(self) -> str:
        """The call that makes the attack."""
        return format_call(self.name, self.settings)

    @property
    def family(self) -> str:
        """The same without its budget: what one curve shows."""
        rest = {k: v for k, v in self.settings.items() if k not in ("eps", "norm")}
        return format_call(self.name, rest) if rest else self.name

    @property
    def budget(self) -> str:
        """Norm and `eps` in words, empty without an `eps`."""
        return "" if self.eps is None else format_budget(self.norm, self.eps)

    @property
    def success(self) -> Tensor:
        """Bool `(n,)`; labelled correctly before, but not after."""
        return ~self.distance.isnan()

    @property
    def attacked(self) -> Tensor:
        """Bool `(n,)`; labelled correctly before, which is what an attack is run on."""
        return self.robust | self.success

    @property
    def robust_accuracy(self) -> Rate:
        """Share of all inputs that are labelled correctly and withstood this attack."""
        return Rate.of(self.robust)

    @property
    def success_rate(self) -> Rate:
        """Share of the attacked inputs that this attack turned."""
        return Rate.of(self.success[self.attacked])

    @property
    def median_distance(self) -> float | None:
        """Lower median over the attacked inputs, a failure counted as inf; `None` without any."""
        return median(self.distance[self.attacked])

    def within(self, radius: Tensor) -> Tensor:
        """Which inputs have a success within `radius` `(n,)` of them; bool `(n,)`."""
        return self.distance.double() <= radius * (1 + _ROUNDING)

    def sent(self, way: Tensor) -> float | None:
        """Mean of `forward` or `backward` over the inputs that were attacked."""
        return float(way[self.attacked].double().mean()) if self.attacked.any() else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity.

        `robust_accuracy` is `None` for a minimum-norm attack. `median_distance_of_attacked` is
        `None` where the median is infinite, because `success_rate` is below one half, and where
        nothing was attacked, so that the `total` of `success_rate` is 0. `inputs_not_finite` has
        the numbers of the inputs.
        """
        return {
            "attack": self.label,
            "name": self.name,
            "settings": self.settings,
            "norm": self.norm,
            "minimum_norm": self.minimum_norm,
            "eps": self.eps,
            "robust_accuracy": None if self.minimum_norm else self.robust_accuracy.to_dict(),
            "success_rate": self.success_rate.to_dict(),
            "median_distance_of_attacked": finite(self.median_distance),
            "forward_per_attacked_input": self.sent(self.forward),
            "backward_per_attacked_input": self.sent(self.backward),
            "inputs_without_gradient": int(self.no_gradient.sum()),
            "inputs_without_start": int(self.no_start.sum()),
            "inputs_not_finite": self.not_finite.nonzero().flatten().tolist(),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Nearest:
    """The nearest adversarial examples that several attacks found, input by input.

    Attributes:
        attacks: how many attacks looked for them.
        success_rate: share of the attacked inputs for which there is one.
        median_distance: lower median over the attacked inputs, an input without one counted as inf;
            `None` if nothing was attacked.
    """

    attacks: int
    success_rate: Rate
    median_distance: float | None

    @staticmethod
    def of(outcomes: Sequence[AttackOutcome]) -> Nearest:
        """Over `outcomes`, at least one, whose distances are in the same norm."""
        distance = outcomes[0].distance
        for outcome in outcomes[1:]:
            distance = distance.fmin(outcome.distance)
        distance = distance[outcomes[0].attacked]
        return Nearest(len(outcomes), Rate.of(~distance.isnan()), median(distance))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `None` as in `AttackOutcome.to_dict`."""
        return {
            "success_rate": self.success_rate.to_dict(),
            "median_distance_of_attacked": finite(self.median_distance),
        }


def median(distance: Tensor) -> float | None:
    """Lower median of `distance` `(n,)`, its NaN counted as inf; `None` for none."""
    if not len(distance):
        return None
    return float(torch.where(distance.isnan(), math.inf, distance).median())


def finite(value: float | None) -> float | None:
    """`value`, but `None` for infinity."""
    return None if value is None or math.isinf(value) else value
