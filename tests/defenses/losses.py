"""Every training loss once, and what their tests share."""

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from advkit import attacks
from advkit.defenses import (
    MART,
    TRADES,
    AdversarialTraining,
    FreeAdversarialTraining,
    GaussianNoise,
    LabelSmoothing,
    LogitPairing,
    LogitSqueezing,
    TemperedCrossEntropy,
    WeightedSum,
)
from tests import attack_cases

PGD = attacks.PGD(eps=0.1, steps=3)

# Each loss with the forward passes that it learns from; a new one joins by a line.
LOSSES = [
    (AdversarialTraining(attack=PGD), 1),
    (AdversarialTraining(attack=attacks.FGSM(eps=0.1, random_start=True), mode="keep"), 1),
    (AdversarialTraining(attack=attacks.DeepFool(steps=3), clean_weight=0.5), 2),
    (TRADES(attack=PGD), 2),
    (TRADES(attack=attacks.FGSM(eps=0.1, random_start=True), beta=1.0, mode="keep"), 2),
    (TRADES(attack=attacks.PGD(eps=0.6, steps=2, norm="l2", restarts=2)), 2),
    (MART(attack=PGD), 2),
    (MART(attack=attacks.BIM(eps=0.1, steps=2), mode="keep"), 2),
    (LogitPairing(attack=PGD, weight=0.5), 2),
    (LogitPairing(kind="clean", weight=0.5), 1),
    (LogitSqueezing(weight=0.5), 1),
    (LogitSqueezing(weight=0.5, sigma=0.5), 1),
    (LabelSmoothing(), 1),
    (FreeAdversarialTraining(eps=0.1), 1),
    (GaussianNoise(sigma=0.25), 1),
    (TemperedCrossEntropy(temperature=20.0), 1),
    (0.5 * AdversarialTraining(attack=PGD) + 0.5 * LabelSmoothing(smoothing=0.1), 2),
]


def scaled(loss, factor):
    """The same loss for inputs that are `factor` times as large, within [0, factor]."""
    if isinstance(loss, WeightedSum):
        return WeightedSum(terms=tuple((w, scaled(term, factor)) for w, term in loss.terms))
    if isinstance(loss, FreeAdversarialTraining):
        return FreeAdversarialTraining(eps=factor * loss.eps, bounds=(0, factor))
    changes = {}
    if getattr(loss, "attack", None) is not None:
        changes["attack"] = attack_cases.scaled(loss.attack, factor)
    for name in ("noise", "sigma"):
        if hasattr(loss, name):
            changes[name] = factor * getattr(loss, name)
    if hasattr(loss, "bounds"):
        changes["bounds"] = (0, factor)
    return dataclasses.replace(loss, **changes)


class Watched(nn.Module):
    """`inner`, every input that it has met, and whether it was learning then."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.seen = []
        self.modes = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        self.modes.append(self.inner.training)
        return self.inner(x)

    def arrays(self):
        return [x.numpy() for x in self.seen]


def gradients(net, value):
    """The gradient of `value` at each parameter."""
    net.zero_grad(set_to_none=True)
    value.backward()
    return [p.grad.clone() for p in net.parameters()]


def softmax(z):
    """Of each row of `z` `(n, classes)`, in NumPy."""
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def kl(p, q):
    """Divergence of `q` from `p`, `(n,)`, in NumPy."""
    return (p * np.log(p / q)).sum(1)


def table(n=12, seed=0):
    """Inputs `(n, 3)` in [0, 1] for `Linear3`, float64, and labels."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(0.05, 0.95, (n, 3))), torch.from_numpy(
        rng.integers(3, size=n)
    )
