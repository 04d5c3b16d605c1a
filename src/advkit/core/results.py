"""What an attack returns, and what the rest of the library asks of an attack."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from advkit.core.norms import Norm


@dataclass(frozen=True, eq=False)
class Queries:
    """Samples sent through the model for each of `n` inputs.

    Attributes:
        forward: int64 `(n,)`; forward passes that the input was part of.
        backward: int64 `(n,)`; backward passes that the input was part of.
    """

    forward: Tensor
    backward: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackResult:
    """Outcome of an attack on a batch of `n` inputs.

    Attributes:
        x_adv: `(n, *features)`, within the model's bounds. A failed sample holds the best try of a
            budget attack and the clean input of a minimum-norm attack.
        success: bool `(n,)`; whether the model's answer to exactly `x_adv`, asked once more after
            the search, reaches the goal.
        distance: `(n,)`; the `norm` of `x_adv - x`.
        norm: what `distance` is measured in.
        queries: samples sent forward and backward.
        no_gradient: bool `(n,)`; the attack failed and met a gradient that was zero or not finite:
            such a failure says nothing about robustness.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    norm: Norm
    queries: Queries
    no_gradient: Tensor


class QueryBudgetExceeded(RuntimeError):  # noqa: N818 - what happened, as a user says it
    """A call that a classifier's query budget has no room for. Nothing of it was sent.

    Attributes:
        budget: samples that may be sent in all.
        spent: samples that were sent before.
        wanted: samples of the call.
        result: what the attack that made the call had found until then; `None` outside of attacks.
    """

    def __init__(self, budget: int, spent: int, wanted: int) -> None:
        super().__init__(
            f"the query budget of {budget:,} samples has {budget - spent:,} left, "
            f"and {wanted:,} more were asked for; what was found so far is in the error's .result"
        )
        self.budget = budget
        self.spent = spent
        self.wanted = wanted
        self.result: AttackResult | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its numbers, since the message alone does not make it; `result` goes along."""
        return type(self), (self.budget, self.spent, self.wanted), self.__dict__


class InconclusiveWarning(UserWarning):
    """What an attack found says less of robustness than it seems.

    Gradients vanished, or the model answered the same input twice in different ways.
    """


class Attack(Protocol):
    """What evaluation and training ask of an attack."""

    def __call__(
        self, model: Any, x: Tensor, y: Tensor | None = None, *, target: Tensor | None = None
    ) -> Tensor:
        """Adversarial inputs like `x`."""
        ...

    def run(
        self, model: Any, x: Tensor, y: Tensor | None = None, *, target: Tensor | None = None
    ) -> AttackResult:
        """Adversarial inputs and what is known of them."""
        ...


class Detector(Protocol):
    """What guards, adaptive attacks and evaluation ask of a detector of the model's outputs."""

    def suspicion(self, outputs: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """How suspicious each of `outputs` `(n, width)` is: `(n,)`, greater is more suspicious."""
        ...


class InputDetector(Protocol):
    """A detector that looks at inputs, and at what the model answers to them."""

    def risk(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """How suspicious each of `x` `(n, *features)` is: `(n,)` in [0, 1], greater is more.

        `labels` `(n,)`, int64, are what the model answers, if that is known.
        """
        ...


class DifferentiableDetector(InputDetector, Protocol):
    """An input detector that shows its parts, with gradients to the input."""

    def excess(self, x: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """How far each part is above what it lets pass, `(n, parts)`, if the answers are `labels`.

        A risk above `threshold` means that at least one is positive, and none at or below it is.
        """
        ...

    def features(self, x: Tensor) -> Tensor:
        """What the parts look at, `(n, width)`."""
        ...


AnyAttack = TypeVar("AnyAttack", bound=Attack)


def with_seed(attack: AnyAttack, seed: int) -> AnyAttack:
    """`attack` with another `seed`, if it has one."""
    if not hasattr(attack, "seed"):
        return attack
    return dataclasses.replace(attack, seed=seed)  # type: ignore[type-var]  # only those have one


def stopping(attack: AnyAttack, stop: str) -> AnyAttack:
    """`attack` with its `stop` set, if it has one and leaves it to the caller."""
    if getattr(attack, "stop", stop) is not None:
        return attack
    return dataclasses.replace(attack, stop=stop)  # type: ignore[type-var]  # only those have one


def check_length(attack: Any, total: int | None) -> None:
    """Raise if `attack` has an `eps` for each sample, but not for `total` of them."""
    eps = getattr(attack, "eps", None)
    if isinstance(eps, Tensor) and total not in (None, len(eps)):
        raise ValueError(f"eps has {len(eps)} values, but x has {total} samples")


def part_of(attack: Any, rows: Tensor) -> Any:
    """`attack` for the samples `rows` of the data, its `eps` cut if it has one for each sample."""
    eps = getattr(attack, "eps", None)
    if not isinstance(eps, Tensor):
        return attack
    if rows[-1] >= len(eps):
        raise ValueError(
            f"eps has {len(eps)} values, but x has {int(rows[-1]) + 1} samples or more"
        )
    return _cut(attack, rows)


def _cut(attack: Any, rows: Tensor) -> Any:
    """`attack` with its `eps` cut, or with that of the attack that it is built around."""
    own = {field.name for field in dataclasses.fields(attack) if field.init}
    if "eps" not in own and "attack" in own:
        return dataclasses.replace(attack, attack=_cut(attack.attack, rows))
    return dataclasses.replace(attack, eps=attack.eps[rows])
