"""Logit pairing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from advkit.core import checks
from advkit.core.protocols import Attack
from advkit.defenses.training_loss import TrainingLoss, craft, cross_entropy, logits_of
from advkit.models import TorchClassifier
from advkit.models.torch import Mode, checked_bounds

Kind = Literal["adversarial", "clean"]


@dataclass(frozen=True, kw_only=True)
class LogitPairing(TrainingLoss):
    """Logit pairing (Kannan, Kurakin and Goodfellow, 2018, arXiv:1803.06373).

    Adversarial: half the cross-entropy of the clean inputs and half that of adversarial examples,
    plus `weight` times the distance of the logits of each pair of them. Clean: the cross-entropy of
    the clean inputs plus `weight` times the distance of pairs of different inputs, of whatever
    classes. The distance is the squared difference, averaged over pairs and classes, as in the code
    of the authors and of Mosbach et al. (2018, arXiv:1810.12042).

    Pairing draws logits together, and to that end a net can bend its loss surface instead of moving
    its boundaries: what robustness is seen under few steps of PGD fell to attacks with more
    restarts and steps (Engstrom, Ilyas and Athalye, 2018, arXiv:1807.10272; Mosbach et al.). Clean
    pairing hides gradients and defends against nothing; look at the figures under PGD with many
    restarts and under an attack without gradients.

    Deviations: the clean and the adversarial half go forward one after the other, so that batch
    norm sees them apart; the authors' code sends both as one batch. Their examples are targeted
    at random or least likely classes on ImageNet; here the attack goes away from `y`. They train
    clean pairing on inputs with Gaussian noise, which here is for the loader to add. An attack of
    several steps gives its strongest iterate, not its last.

    Args:
        attack: makes the examples of adversarial pairing; its `seed` is drawn anew at each call,
            and what its `stop` leaves open is `"never"`. `None` for clean pairing.
        weight: of the distance, not negative (lambda in the paper); 0.5 is what the authors' code
            proposes for ImageNet.
        kind: `"adversarial"`, or `"clean"`, which pairs each input of the first half of the batch
            with one of the second, at random if the loader shuffles. The last input of an odd batch
            has no partner, and part in the cross-entropy alone.
        bounds: lower and upper end of valid feature values, for the attack.
        mode: `"eval"` crafts against the module in evaluation mode, `"keep"` in the mode that it
            has.

    Raises:
        ValueError: a value is out of its range, an option is unknown, or there is an `attack` that
            clean pairing has no use for.
        TypeError: `attack` is no attack, where one is needed.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> loss = defenses.LogitPairing(attack=attacks.PGD(eps=0.1, steps=7), weight=0.5)
        >>> loss(net, x, y).backward()
        >>> defenses.LogitPairing(kind="clean", weight=0.2)(net, x, y).backward()
    """

    attack: Attack | None = None
    weight: float = 0.5
    kind: Kind = "adversarial"
    bounds: tuple[float, float] = (0.0, 1.0)
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        checks.not_negative("weight", self.weight)
        checks.one_of("kind", self.kind, ("adversarial", "clean"))
        if self.kind == "adversarial":
            checks.attack("attack", self.attack)
        elif self.attack is not None:
            raise ValueError(f"`attack` must be None for clean pairing, got {self.attack!r}")
        checked_bounds(self.bounds)
        checks.one_of("mode", self.mode, ("eval", "keep"))

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.attack is None:
            return self._clean(module, x, y)
        return self._adversarial(module, x, y, self.attack)

    def _adversarial(self, module: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        x_adv = craft(attack, TorchClassifier(module, self.bounds, mode=self.mode), x, y)
        logits, logits_adv = logits_of(module, x), logits_of(module, x_adv)
        mixed = (cross_entropy(logits, y) + cross_entropy(logits_adv, y)) / 2
        return mixed + self.weight * _distance(logits, logits_adv).mean()

    def _clean(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = logits_of(module, x)
        pairs = len(x) // 2
        value = cross_entropy(logits, y)
        if not pairs:
            return value
        return value + self.weight * _distance(logits[:pairs], logits[pairs : 2 * pairs]).mean()


def _distance(logits: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference over the classes of logits `(n, classes)`: `(n,)`."""
    return (logits - others).square().mean(1)
