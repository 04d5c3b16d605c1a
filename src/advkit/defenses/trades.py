"""TRADES."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.losses import Loss
from advkit.core.results import Attack
from advkit.defenses._base import (
    CraftingLoss,
    craft,
    crafting,
    cross_entropy,
    divergence,
    logits_of,
)

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
    sees them apart, as in the authors' code) and one without, for the p(x) that the attack leaves.

    Deviations: the authors start from x + 0.001 * N(0, 1), here it is the attack's own random
    start. They take the last iterate; here an attack of several steps gives the one that goes
    furthest beyond, or nearest to, the boundary of the class that the module gives to x. Most often
    that is the one of largest divergence too, since both grow away from that class; it is never a
    reason to look at the labels. They add the divergences up and divide by a fixed batch size, here
    it is their mean, also in a last, smaller batch.

    Args:
        attack: makes the examples, with random start: the divergence has no gradient at x. Its
            `loss` is replaced, its `seed` drawn anew at each call, and its `stop` is `"never"`.
        beta: weight of the divergence, not negative (1 / lambda in the paper).
        bounds: lower and upper end of valid feature values.
        mode: `"eval"` crafts against the module in evaluation mode, `"keep"` in the mode that it
            has, as the authors' code does.

    Raises:
        ValueError: a value is out of its range, or `attack` has no random start, a `loss` of its
            own or `stop="first"`.
        TypeError: `attack` is no attack, or has no `loss` to replace.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> from advkit.defenses.trades import TRADES
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> TRADES(attack=attacks.PGD(eps=0.1, steps=7), beta=6.0)(net, x, y).backward()
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative("beta", self.beta)
        _check_that_it_can_climb(self.attack)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = self._apart(module, x)
        logits, logits_adv = logits_of(module, x), logits_of(module, x_adv)
        return cross_entropy(logits, y) + self.beta * divergence(logits, logits_adv).mean()

    def _apart(self, module: nn.Module, x: Tensor) -> Tensor:
        """Examples whose answers are far from those to `x`."""
        model = self._crafter(module)
        with crafting(x.device), torch.no_grad():
            clean = model.logits(x)
        return craft(_climbing(self.attack, _away_from(clean)), model, x, clean.argmax(1))


def _away_from(clean: Tensor) -> Loss:
    """The divergence from the softmax of `clean` `(n, classes)`, for an attack to climb."""

    def loss(logits: Tensor, _: Tensor) -> Tensor:
        if len(logits) != len(clean):
            raise ValueError(
                f"attack must send all {len(clean)} samples at each step, in order, got "
                f"{len(logits)} logits"
            )
        return divergence(clean, logits)

    return loss


def _climbing(attack: AnyAttack, loss: Loss) -> AnyAttack:
    """`attack` with another `loss`."""
    return dataclasses.replace(attack, loss=loss)  # type: ignore[type-var]  # checked to be one


def _check_that_it_can_climb(attack: Attack) -> None:
    """Raise unless `attack` can climb the divergence of all samples from its own start."""
    default = _defaults(attack)
    if "loss" not in default:
        raise TypeError(
            "attack must be a dataclass with a loss to replace, such as PGD(eps=0.1), got "
            f"{attack!r}"
        )
    if (loss := getattr(attack, "loss", None)) != default["loss"]:
        raise ValueError(
            f"attack must have its default loss {default['loss']!r}, which TRADES replaces, got "
            f"{loss!r}"
        )
    if not getattr(attack, "random_start", False):
        raise ValueError(
            "attack must have a random_start, since the divergence has no gradient at the clean "
            f"input; got {attack!r}"
        )
    if getattr(attack, "stop", None) == "first":
        raise ValueError("attack must have stop='never' or None, got stop='first'")


def _defaults(attack: object) -> dict[str, Any]:
    """The defaults of a dataclass by name; of anything else none."""
    if not dataclasses.is_dataclass(attack):
        return {}
    return {field.name: field.default for field in dataclasses.fields(attack)}
