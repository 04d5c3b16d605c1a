"""Logit pairing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from advkit.core import checks
from advkit.core.bounds import checked_bounds
from advkit.core.protocols import Attack
from advkit.defenses.training_loss import TrainingLoss, craft, cross_entropy, logits_of
from advkit.models import TorchClassifier
from advkit.models.torch import Mode

Kind = Literal["adversarial", "clean"]


@dataclass(frozen=True, kw_only=True)
class LogitPairing(TrainingLoss):
    """Logit pairing (Kannan, Kurakin and Goodfellow, 2018, arXiv:1803.06373).

    Adversarial pairing adds half the cross-entropy of clean inputs, half that of adversarial
    examples, and `weight` times the distance between the logits of each pair. Clean pairing adds
    the cross-entropy of clean inputs and `weight` times the distance of pairs of different inputs
    of any classes. The distance is the squared difference, averaged over pairs and classes, as in
    the code of the authors and of Mosbach et al. (2018, arXiv:1810.12042).

    Pairing makes logits similar, which a net can achieve by a distorted loss surface instead of a
    moved decision boundary. The apparent robustness under few steps of PGD did not hold against
    more restarts and steps (Engstrom, Ilyas and Athalye, 2018, arXiv:1807.10272; Mosbach et al.).
    Clean pairing masks gradients and is not a defense. Evaluate it with PGD with many restarts and
    with a gradient-free attack.

    Deviations from the paper:
        - Clean inputs and adversarial examples are passed separately, which separates them in batch
          norm. The authors' code passes both in one batch.
        - The attack is untargeted, away from `y`. The authors target random or least likely classes
          on ImageNet.
        - Clean pairing adds no noise; the loader can. The authors train it on inputs with Gaussian
          noise.
        - An attack of several steps returns its strongest iterate, not its last.

    Args:
        attack: attack that generates the examples of adversarial pairing. A new `seed` is drawn at
            each call, and a `stop` of `None` becomes `"never"`. `None` for clean pairing.
        weight: weight of the distance, not negative (lambda in the paper); the authors' code
            proposes 0.5 for ImageNet.
        kind: `"adversarial"`, or `"clean"`, which pairs each input of the first half of the batch
            with one of the second half, at random if the loader shuffles. The last input of an odd
            batch has no partner, and only counts in the cross-entropy.
        bounds: lower and upper end of valid feature values, for the attack.
        mode: `"eval"` attacks the module in evaluation mode, `"keep"` in its current mode.

    Raises:
        ValueError: a value is out of its range, an option is unknown, or an `attack` is given for
            clean pairing.
        TypeError: `attack` is not an attack, where one is needed.

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
            raise ValueError(f"`attack` must be None for clean pairing, got {self.attack!r}.")
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
    """Return the mean squared difference over classes of logits `(n, classes)`: `(n,)`."""
    return (logits - others).square().mean(1)
