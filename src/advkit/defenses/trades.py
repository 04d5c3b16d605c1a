"""TRADES."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.attack_options import starts_at_random
from advkit.core.losses import Loss
from advkit.core.norms import Norm, in_unit, lp_norm, per_sample
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

# Shares of the radius by which an input in the ball may exceed it, and iterates of attacks do.
ROUNDING, ROUNDING_16_BITS = 1e-4, 2e-2
AnyAttack = TypeVar("AnyAttack", bound=Attack)


@dataclass(frozen=True, kw_only=True)
class TRADES(CraftingLoss):
    """TRADES: clean cross-entropy and a bound on the loss that an attack can add.

    Zhang et al. (2019, arXiv:1901.08573): cross-entropy(x, y) + beta * KL(p(x) || p(x_adv)), where
    the example x_adv maximizes the same divergence. A larger `beta` gives more robustness and less
    accuracy. The labels are not used in the second term, neither for the examples nor for the loss.

    New examples are generated at every call, against the module in evaluation mode. They are
    constants to the loss, whose gradient flows through both p(x) and p(x_adv).

    A step needs two forward passes with gradients of the parameters, of the clean inputs and of the
    examples. Batch norm processes them separately, as in the authors' code. One more pass without
    gradients computes p(x) for the attack.

    Deviations from the paper:
        - Of all inputs that the attack evaluates, the one with the largest divergence is used; the
          authors use the last one. The attack's own result, the strongest by its margin, is not
          used. For up to four in ten samples of a robust net the divergence grows as the net
          becomes more confident in x, where no margin grows.
        - The attack's own random start is used. The authors start from x + 0.001 * N(0, 1).
        - The divergence is averaged, also in a last, smaller batch. The authors divide the sum by a
          fixed batch size.

    Args:
        attack: attack that generates the examples, with a random start: the divergence has no
            gradient at x. Its `loss` is replaced, a new `seed` is drawn at each call, and its
            `stop` is `"never"`.
        beta: weight of the divergence, not negative (1 / lambda in the paper).
        bounds: lower and upper end of valid feature values.
        mode: `"eval"` attacks the module in evaluation mode, `"keep"` in its current mode.

    Raises:
        ValueError: a value is out of its range, or `attack` has no random start, another `loss`
            than its default, or `stop="first"`.
        TypeError: `attack` is not an attack, or has no `loss` to replace.

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
        _check_attack(self.attack)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = self._maximize_divergence(module, x, y)
        logits, logits_adv = logits_of(module, x), logits_of(module, x_adv)
        return cross_entropy(logits, y) + self.beta * divergence(logits, logits_adv).mean()

    def _maximize_divergence(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the inputs of largest divergence that the attack evaluates."""
        with crafting(x.device), torch.no_grad():
            model = _DivergenceRecorder(module, self.bounds, self.mode, x, self.attack)
            model.logits(craft(_with_loss(self.attack, model.divergence), model, x, y))
        return model.x_adv


class _DivergenceRecorder(TorchClassifier):
    """Classifier that records the input of largest divergence among those it is queried with.

    Inputs outside the ball of the attack, where `PGD` begins in l2 and l1, are not recorded.

    Attributes:
        x_adv: for each sample the input of largest divergence, `(n, *features)`.
    """

    def __init__(
        self,
        module: nn.Module,
        bounds: tuple[float, float],
        mode: Mode,
        x: Tensor,
        attack: Attack,
    ) -> None:
        super().__init__(module, bounds, mode=mode)
        self._clean = at_least_float32(super().logits(x).detach())
        self.x_adv = x.detach()
        self._largest = self._clean.new_full((len(x),), -math.inf)
        self._x = x.detach()
        self._norm: Norm = in_unit(getattr(attack, "norm", "linf"), getattr(attack, "unit", ""))
        eps = getattr(attack, "eps", None)
        self._radii = None if eps is None else checks.radii(eps, x)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of `x`, all samples in order, and record their divergence."""
        if len(x) != len(self.x_adv):
            raise ValueError(
                f"`attack` must query all {len(self.x_adv)} samples at each step, got {len(x)}."
            )
        logits = super().logits(x)
        self._update(x.detach(), self.divergence(at_least_float32(logits.detach())))
        return logits

    def divergence(self, logits: Tensor, _: Tensor | None = None) -> Tensor:
        """Return the divergence `(n,)` of `logits` from those of the clean inputs, as a `Loss`."""
        return divergence(self._clean, logits)

    def _update(self, x: Tensor, value: Tensor) -> None:
        better = value > self._largest
        if self._radii is not None:
            distance = lp_norm(at_least_float32(x) - at_least_float32(self._x), self._norm)
            slack = ROUNDING_16_BITS if x.element_size() <= 2 else ROUNDING
            better &= distance <= (1 + slack) * self._radii
        self.x_adv = torch.where(per_sample(better, x), x, self.x_adv)
        self._largest = torch.where(better, value, self._largest)


def _with_loss(attack: AnyAttack, loss: Loss) -> AnyAttack:
    """Return `attack` with another `loss`."""
    return dataclasses.replace(attack, loss=loss)  # type: ignore[type-var]  # checked to be a dataclass


def _check_attack(attack: Attack) -> None:
    """Raise unless `attack` can maximize the divergence of all samples from a random start."""
    default = _defaults(attack)
    if "loss" not in default:
        raise TypeError(
            "`attack` must be a dataclass with a loss to replace, such as PGD(eps=0.1), got "
            f"{attack!r}."
        )
    if (loss := getattr(attack, "loss", None)) != default["loss"]:
        raise ValueError(
            f"`attack` must have its default loss {default['loss']!r}, which TRADES replaces, got "
            f"{loss!r}."
        )
    if not starts_at_random(attack):
        raise ValueError(
            f"`attack` must have a random_start, got {attack!r}. The divergence has no gradient at "
            "the clean input."
        )
    if getattr(attack, "candidates", None) is not None:
        raise ValueError(
            f"`attack` must not aim at classes, got {attack!r}. The divergence has no class: pass "
            "it without candidates."
        )
    if getattr(attack, "stop", None) == "first":
        raise ValueError("`attack` must have stop='never' or None, got stop='first'.")


def _defaults(attack: object) -> dict[str, Any]:
    """Return the defaults of a dataclass by name; empty for any other object."""
    if not dataclasses.is_dataclass(attack):
        return {}
    return {field.name: field.default for field in dataclasses.fields(attack)}
