"""Cascade of attacks, each on the samples that the attacks before it did not fool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from advkit.attacks.engine.staged import StagedAttack
from advkit.core import checks
from advkit.core.attack_options import measured_norm
from advkit.core.hyperparameters import is_equal
from advkit.core.norms import COUNTS, Norm
from advkit.core.protocols import Attack


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Cascade(StagedAttack):
    """Attacks one after another, each on the samples without a success so far.

    A cascade is as strong as the strongest of its attacks for each sample, and costs less than all
    of them. Put cheap attacks first. `AutoAttack` is a cascade. The result says in `stage` which
    attack succeeded. A failure has the strongest of the iterates that the attacks returned, the one
    with the largest margin.

    Attacks that need gradients or scores are left out on a model without them, with a warning.
    Warnings of the attacks about their own failures are replaced by one of the cascade. A failure
    counts as `no_gradient` if no attack that computes gradients found a usable one.

    Each attack takes three forward passes of a sample more than its steps: the clean input, the
    result, and the result once more for the comparison with the others.

    Args:
        attacks: attacks with the same `norm` and `eps`, at least one.
        stop: `"first"` ends at the first success of a sample. `"never"` runs all attacks on all
            samples and returns the strongest iterate. `None` lets the caller choose; a direct call
            and an evaluation choose `"first"`. Attacks whose own `stop` is `None` get this one.

    Attributes:
        norm: norm of the attacks.
        eps: budget of the attacks.

    Raises:
        TypeError: `attacks` is not a list of attacks.
        ValueError: there are none, or they differ in `norm` or `eps`, or have no `eps`.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> cascade = attacks.Cascade(
        ...     attacks=[attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1), attacks.Square(eps=0.1)]
        ... )
        >>> result = cascade.run(net, torch.rand(5, 1, 8, 8))
        >>> result.stage.shape
        torch.Size([5])
    """

    attacks: Sequence[Attack]
    norm: Norm = field(init=False, repr=False)
    eps: float | Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.one_of("stop", self.stop, ("first", "never", None))
        if isinstance(self.attacks, str) or not isinstance(self.attacks, Sequence):
            raise TypeError(f"`attacks` must be a list of attacks, got {self.attacks!r}.")
        for attack in self.attacks:
            if isinstance(attack, type) or not hasattr(attack, "run"):
                raise TypeError(f"`attacks` must be attacks, such as PGD(eps=0.1), got {attack!r}.")
        if not self.attacks:
            raise ValueError("`attacks` must have at least one attack, got none.")
        object.__setattr__(self, "attacks", tuple(self.attacks))
        norms = [measured_norm(attack) or None for attack in self.attacks]
        object.__setattr__(self, "norm", self._shared("norm", norms))
        budgets = [getattr(attack, "eps", None) for attack in self.attacks]
        object.__setattr__(self, "eps", self._shared("eps", budgets))

    def _shared(self, name: str, values: Sequence[object]) -> object:
        """Return the one of `values` that all attacks have for `name`.

        Raises:
            ValueError: an attack has another value or none.
        """
        if any(value is None for value in values):
            which = self.attacks[[value is None for value in values].index(True)]
            raise ValueError(f"`attacks` must each have `{name}`, got {which!r} without one.")
        if not all(is_equal(value, values[0]) for value in values):
            passed = "unit" if set(map(str, values)) == set(COUNTS) else name
            raise ValueError(
                f"`attacks` must have the same `{name}`, got {values}. Pass {passed}= to each."
            )
        return values[0]

    def _stages(self, classes: int) -> Sequence[Attack]:
        return self.attacks
