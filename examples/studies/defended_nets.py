"""Four small nets for MNIST behind defenses, which `suite_defended_nets.py` trains and attacks.

A defense of each kind: distillation, k-winners-take-all, inputs of 3 bits, and random noise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nets import mnist_cnn_certified
from study import Batches, Loss, batches, cross_entropy, describe_module, learn, loaded, seeded
from torch import Tensor, nn

from advkit import Expectation, StraightThrough, TorchClassifier, attacks
from advkit.core.files import atomic_write
from advkit.data import Dataset
from advkit.defenses import AdversarialTraining, Distillation, TemperedCrossEntropy

TEMPERATURE = 100.0  # of the distilled net
WINNERS = 0.2  # share of the features that a layer of the k-WTA net keeps
LEVELS = 7  # steps between the values that an input of 3 bits can have
NOISE = 0.3  # standard deviation of the stochastic net, in input units
DRAWS = 16  # of the expectation
EPS = {"k-WTA": 0.2, "3-bit inputs": 0.15}  # of the adversarial training
Fit = Callable[[nn.Module, Batches, Dataset, int], None]

BATCH = 128
LR = 2e-3


class KWinners(nn.Module):
    """k-winners-take-all (Xiao et al., 2020, arXiv:1905.10510).

    Of the features of a sample, the largest ones keep their values, and the others become zero. The
    function jumps wherever the order of two features changes, so that its gradient says little
    about nearby inputs.

    Args:
        share: share of the features that keep their values.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= self.threshold(x), x, 0)

    def threshold(self, x: Tensor) -> Tensor:
        """Return the smallest feature that each sample keeps, `(n, 1, ...)`."""
        flat = x.flatten(1)
        k = max(1, int(self.share * flat.shape[1]))
        return flat.topk(k).values[:, -1].view(-1, *[1] * (x.ndim - 1))


class InputNoise(nn.Module):
    """Gaussian noise, also in evaluation.

    Args:
        sigma: standard deviation.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x)


def three_bits(x: Tensor) -> Tensor:
    """Round values in [0, 1] to eight levels."""
    return (LEVELS * x).round() / LEVELS


def k_wta_net() -> nn.Module:
    """Return an untrained net of the layers of `mnist_cnn_certified` with k-WTA for ReLU."""
    layers = [KWinners(WINNERS) if isinstance(m, nn.ReLU) else m for m in mnist_cnn_certified()]
    return nn.Sequential(*layers)


def noisy_net() -> nn.Module:
    """Return an untrained net whose input gets noise."""
    return nn.Sequential(InputNoise(NOISE), mnist_cnn_certified())


def train_distilled(net: nn.Module, loader: Batches, train: Dataset, epochs: int) -> None:
    """Train a teacher at the temperature, and `net` on its outputs."""
    teacher = mnist_cnn_certified()
    learn(teacher, loader, loss=TemperedCrossEntropy(temperature=TEMPERATURE), epochs=epochs, lr=LR)
    defense = Distillation(
        temperature=TEMPERATURE, epochs=epochs, lr=LR, batch_size=BATCH, seed=0
    )  # fmt: skip
    defense.fit(teacher, net, train.x.split(1000))


def train_against(loss: Loss) -> Fit:
    """Return a training function with a loss."""

    def train(net: nn.Module, loader: Batches, _: Dataset, epochs: int) -> None:
        learn(net, loader, loss=loss, epochs=epochs, peak=5e-3)

    return train


def fast_training(eps: float) -> Loss:
    """Return the loss of adversarial training with FGSM from a random start."""
    return AdversarialTraining(attack=attacks.FGSM(eps=eps, random_start=True))


def pgd_training(eps: float) -> Loss:
    """Return the loss of adversarial training with PGD of few steps."""
    return AdversarialTraining(attack=attacks.PGD(eps=eps, steps=4))


class Recipe(NamedTuple):
    """How a defended net is made."""

    factory: Callable[[], nn.Module]  # untrained net
    fit: Fit
    around: Callable[[nn.Module], Any]  # classifier around the trained net
    epochs: int


RECIPES = {
    "distilled": Recipe(mnist_cnn_certified, train_distilled, TorchClassifier, 6),
    "k-WTA": Recipe(k_wta_net, train_against(pgd_training(EPS["k-WTA"])), TorchClassifier, 2),
    "3-bit inputs": Recipe(
        mnist_cnn_certified,
        train_against(fast_training(EPS["3-bit inputs"])),
        lambda net: StraightThrough(net, three_bits),
        3,
    ),
    "stochastic": Recipe(
        noisy_net, train_against(cross_entropy), lambda net: Expectation(net, draws=DRAWS), 3
    ),
}


def defended(name: str, train: Dataset, epochs: int | None = None, out: Path | None = None) -> Any:
    """Return the classifier of a defense.

    Args:
        name: a key of `RECIPES`.
        train: training images.
        epochs: passes over them; `None` for those of the recipe.
        out: folder that keeps the weights, or `None`. Weights that it has are read instead of
            trained.
    """
    recipe = RECIPES[name]
    path = None if out is None else out / f"{name.replace(' ', '_')}.pt"
    if path is not None and path.is_file():
        return recipe.around(loaded(recipe.factory(), path).eval())
    with seeded():
        net = recipe.factory().train()
        recipe.fit(net, batches(train.x, train.y, BATCH), train, epochs or recipe.epochs)
    if path is not None:
        with atomic_write(path) as temporary:
            torch.save(net.state_dict(), temporary)
    return recipe.around(net.eval())


if __name__ == "__main__":
    describe_module(__doc__)
