"""TRADES."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.losses import Loss
from advkit.core.norms import per_sample
from advkit.core.protocols import Attack
from advkit.core.tensors import at_least_float32
from advkit.defenses.training_loss import (
    CraftingLoss,
    craft,
    crafting,
    cross_entropy,
    divergence,
    logits_of,
)
from advkit.models import TorchClassifier
from advkit.models.torch import Mode

AnyAttack = TypeVar("AnyAttack", bound=Attack)


@dataclass(frozen=True, kw_only=True)
class TRADES(CraftingLoss):
    """TRADES: clean cross-entropy, and a bound on what an attack can add to it.

    Zhang et al. (2019, arXiv:1901.08573): cross-entropy(x, y) + beta * KL(p(x) || p(x_adv)), where
    the example x_adv climbs that same divergence. More `beta` is more robust and less accurate. The
    labels have no part in the second term, neither in making the examples nor in their price.

    The examples are made anew at every call, against the module in evaluation mode, and are
    constants to the outer loss, whose gradient flows through p(x) and p(x_adv) both. A step costs
    two forward passes with gradients of the parameters (clean inputs, then examples; batch norm
    sees them apart, as in the authors' code) and one without, for the p(x) to climb away from.

    Deviations: of all inputs that the attack tries, the one of largest divergence is taken; the
    authors take the last. What the attack itself returns, the strongest by its margin, is not: for
    up to four in ten samples of a robust net the divergence grows as the net becomes surer of x,
    and no margin does. The authors start from x + 0.001 * N(0, 1), here it is the attack's own
    random start. They add the divergences up and divide by a fixed batch size, here it is their
    mean, also in a last, smaller batch.

    Args:
        attack: makes the examples, with random start: the divergence has no gradient at x. Its
            `loss` is replaced, its `seed` drawn anew at each call, and its `stop` is `"never"`.
        beta: weight of the divergence, not negative (1 / lambda in the paper).
        bounds: lower and upper end of valid feature values.
        mode: `"eval"` crafts against the module in evaluation mode, `"keep"` in the mode that it
            has.

    Raises:
        ValueError: a value is out of its range, or `attack` has no random start, a `loss` of its
            own or `stop="first"`.
        TypeError: `attack` is no attack, or has no `loss` to replace.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> defenses.TRADES(attack=attacks.PGD(eps=0.1, steps=7), beta=6.0)(net, x, y).backward()
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative("beta", self.beta)
        _check_that_it_can_climb(self.attack)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = self._apart(module, x, y)
        logits, logits_adv = logits_of(module, x), logits_of(module, x_adv)
        return cross_entropy(logits, y) + self.beta * divergence(logits, logits_adv).mean()

    def _apart(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Examples whose answers are far from those to `x`."""
        with crafting(x.device), torch.no_grad():
            model = _Witness(module, self.bounds, self.mode, x)
            model.logits(craft(_climbing(self.attack, model.divergence), model, x, y))
        return model.x_adv


class _Witness(TorchClassifier):
    """A module under attack, and what of all that it was asked is answered least like `x`.

    Attributes:
        x_adv: of each sample the input of largest divergence, `(n, *features)`.
    """

    def __init__(
        self, module: nn.Module, bounds: tuple[float, float], mode: Mode, x: Tensor
    ) -> None:
        super().__init__(module, bounds, mode=mode)
        self._clean = at_least_float32(super().logits(x).detach())
        self.x_adv = x.detach()
        self._largest = self._clean.new_full((len(x),), -math.inf)

    def logits(self, x: Tensor) -> Tensor:
        """As `TorchClassifier`; `x` has to be all samples, in order."""
        if len(x) != len(self.x_adv):
            raise ValueError(
                f"`attack` must send all {len(self.x_adv)} samples at each step, sent {len(x)}"
            )
        logits = super().logits(x)
        self._remember(x.detach(), self.divergence(at_least_float32(logits.detach())))
        return logits

    def divergence(self, logits: Tensor, _: Tensor | None = None) -> Tensor:
        """How far `logits` `(n, classes)` are from those of the clean inputs, `(n,)`: a `Loss`."""
        return divergence(self._clean, logits)

    def _remember(self, x: Tensor, value: Tensor) -> None:
        better = value > self._largest
        self.x_adv = torch.where(per_sample(better, x), x, self.x_adv)
        self._largest = torch.where(better, value, self._largest)


def _climbing(attack: AnyAttack, loss: Loss) -> AnyAttack:
    """`attack` with another `loss`."""
    return dataclasses.replace(attack, loss=loss)  # type: ignore[type-var]  # checked to be one


def _check_that_it_can_climb(attack: Attack) -> None:
    """Raise unless `attack` can climb the divergence of all samples from its own start."""
    default = _defaults(attack)
    if "loss" not in default:
        raise TypeError(
            "`attack` must be a dataclass with a loss to replace, such as PGD(eps=0.1), got "
            f"{attack!r}"
        )
    if (loss := getattr(attack, "loss", None)) != default["loss"]:
        raise ValueError(
            f"`attack` must have its default loss {default['loss']!r}, which TRADES replaces, got "
            f"{loss!r}"
        )
    if not getattr(attack, "random_start", False):
        raise ValueError(
            "`attack` must have a random_start, since the divergence has no gradient at the clean "
            f"input; got {attack!r}"
        )
    if getattr(attack, "stop", None) == "first":
        raise ValueError("`attack` must have stop='never' or None, got stop='first'")


def _defaults(attack: object) -> dict[str, Any]:
    """The defaults of a dataclass by name; of anything else none."""
    if not dataclasses.is_dataclass(attack):
        return {}
    return {field.name: field.default for field in dataclasses.fields(attack)}
