"""MART."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from advkit.core import checks
from advkit.core.losses import split_label_logit
from advkit.defenses.training_loss import CraftingLoss, cross_entropy, divergence, logits_of


@dataclass(frozen=True, kw_only=True)
class MART(CraftingLoss):
    """Misclassification-aware adversarial training (Wang et al., 2020, ICLR).

    Boosted cross-entropy of the example, -log p_y(x_adv) - log(1 - max p_k(x_adv)) over the other
    classes k, and beta * KL(p(x) || p(x_adv)) * (1 - p_y(x)): what the module gets wrong without an
    attack is held fast most. With two classes the first term is twice the cross-entropy.

    The examples are made anew at every call, against the module in evaluation mode, and are
    constants to the outer loss. The gradient flows through everything else, the factor
    1 - p_y(x) too, as in the authors' code. Each call takes two forward passes with gradients of
    the parameters, first of the clean inputs.

    Deviations: 1 - p is added up from the other classes instead of subtracted, so that neither the
    logarithms nor the factor need the authors' offsets of 1e-4 to 1e-12. The authors start from
    x + 0.001 * N(0, 1) and take the last iterate; here it is the attack's own start and, of several
    steps, its strongest iterate.

    Args:
        attack: makes the examples. What its `stop` leaves open is `"never"` here, and its `seed` is
            drawn anew at each call.
        beta: weight of the divergence, not negative (lambda in the paper).
        bounds: lower and upper end of valid feature values.
        mode: `"eval"` crafts against the module in evaluation mode, `"keep"` in the mode that it
            has.

    Raises:
        ValueError: a value is out of its range, or an option is unknown.
        TypeError: `attack` is no attack.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> defenses.MART(attack=attacks.PGD(eps=0.1, steps=7))(net, x, y).backward()
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative("beta", self.beta)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = self._craft(module, x, y)
        logits, logits_adv = logits_of(module, x), logits_of(module, x_adv)
        unsure = _log_rest(logits, y).exp()
        kept = divergence(logits, logits_adv) * unsure
        return _boosted_cross_entropy(logits_adv, y) + self.beta * kept.mean()


def _boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of -log p_y - log(1 - p_k), k being the likeliest other class."""
    rival = split_label_logit(logits, y)[1].argmax(1)
    return cross_entropy(logits, y) - _log_rest(logits, rival).mean()


def _log_rest(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 - p_y) of logits `(n, classes)`, `(n,)`; exact where p_y is 1 in its dtype."""
    _, others = split_label_logit(logits, y)
    return others.logsumexp(1) - logits.logsumexp(1)
