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

    The loss has two terms. The boosted cross-entropy of the example is -log p_y(x_adv) - log(1 -
    max p_k(x_adv)) over the other classes k; with two classes it is twice the cross-entropy. The
    second term is beta * KL(p(x) || p(x_adv)) * (1 - p_y(x)). It stabilizes most the samples that
    the module misclassifies without an attack.

    New examples are generated at every call, against the module in evaluation mode, and are
    constants to the loss. The gradient flows through everything else, also through the factor 1 -
    p_y(x), as in the authors' code. Each call needs two forward passes with gradients of the
    parameters, the first of the clean inputs.

    Deviations from the paper:
        - 1 - p is computed as the sum over the other classes. The authors' code subtracts, and
          needs offsets of 1e-4 to 1e-12 in the logarithms and the factor.
        - The attack's own start is used. The authors start from x + 0.001 * N(0, 1).
        - An attack of several steps returns its strongest iterate; the authors use the last one.

    Args:
        attack: attack that generates the examples. A `stop` of `None` becomes `"never"`, and a new
            `seed` is drawn at each call.
        beta: weight of the divergence, not negative (lambda in the paper).
        bounds: lower and upper end of valid feature values.
        mode: `"eval"` attacks the module in evaluation mode, `"keep"` in its current mode.

    Raises:
        ValueError: a value is out of its range, or an option is unknown.
        TypeError: `attack` is not an attack.

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
        uncertainty = _log_complement(logits, y).exp()
        consistency = divergence(logits, logits_adv) * uncertainty
        return _boosted_cross_entropy(logits_adv, y) + self.beta * consistency.mean()


def _boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean of -log p_y - log(1 - p_k), where k is the most probable other class."""
    runner_up = split_label_logit(logits, y)[1].argmax(1)
    return cross_entropy(logits, y) - _log_complement(logits, runner_up).mean()


def _log_complement(logits: Tensor, y: Tensor) -> Tensor:
    """Return log(1 - p_y) `(n,)` of logits `(n, classes)`; exact where p_y is 1 in its dtype."""
    _, others = split_label_logit(logits, y)
    return others.logsumexp(1) - logits.logsumexp(1)
