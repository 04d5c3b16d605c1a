"""Adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from advkit.core import checks
from advkit.defenses.training_loss import CraftingLoss, logits_of


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(CraftingLoss):
    """Adversarial training: cross-entropy of adversarial examples, or of them and clean inputs.

    With PGD this is the training of Madry et al. (2018, arXiv:1706.06083). With FGSM and a
    `clean_weight` of 0.5 it is the mixture of Goodfellow et al. (2015, arXiv:1412.6572). With
    `FGSM(eps=..., random_start=True)` it is the fast training of Wong, Rice and Kolter (2020,
    arXiv:2001.03994).

    New examples are generated at every call, against the module in evaluation mode. The `grad` of
    its parameters, its modes and its buffers are left unchanged. The examples are constants: no
    gradient flows through the attack.

    Deviations from the paper:
        - An attack of several steps returns its strongest iterate, not its last.
        - The module is attacked in evaluation mode. Madry et al. and Wong et al. attack it in
          training mode, which is `mode="keep"` here.

    Args:
        attack: attack that generates the examples. A `stop` of `None` becomes `"never"`, and a new
            `seed` is drawn at each call.
        clean_weight: weight of the cross-entropy of clean inputs, in [0, 1] (alpha in Goodfellow et
            al.). At 0 the clean inputs need no forward pass.
        bounds: lower and upper end of valid feature values.
        mode: `"eval"` attacks the module in evaluation mode, `"keep"` in its current mode.

    Raises:
        ValueError: `clean_weight` is out of its range, or an option is unknown.
        TypeError: `attack` is not an attack.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> loss = defenses.AdversarialTraining(attack=attacks.PGD(eps=0.1, steps=7))
        >>> loss(net, x, y).backward()
    """

    clean_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.fraction("clean_weight", self.clean_weight)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = self._craft(module, x, y)
        value = F.cross_entropy(logits_of(module, x_adv), y)
        if not self.clean_weight:
            return value
        clean = F.cross_entropy(logits_of(module, x), y)
        return self.clean_weight * clean + (1 - self.clean_weight) * value
